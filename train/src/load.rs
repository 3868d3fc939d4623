//! Batches from the cache, built ahead of the trainer on rayon threads.
//!
//! Decoded blocks are kept within a byte budget: a window of the order is read once, however its records are mixed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Result, anyhow};
use cab_format::{Block, Cache, FieldSpec, Location, Split};
use crossbeam_channel::{Receiver, bounded};
use tch::{Device, Kind, Tensor};

use crate::tensor;

/// Records as tensors, on the training device.
#[derive(Debug)]
pub struct Batch {
    /// u8 `[batch, channels, height, width]`, as stored.
    pub input: Tensor,
    /// i64 `[batch]`; -1 where a record has no label.
    pub labels: Tensor,
    /// The other fields read, by name, in their stored kind, `[batch, …]`.
    pub fields: HashMap<String, Tensor>,
}

/// Builds batches of one split.
#[derive(Debug, Clone)]
pub struct Loader {
    cache: Arc<Cache>,
    fields: Arc<Vec<FieldSpec>>,
    blocks: Arc<BlockStore>,
    device: Device,
}

impl Loader {
    /// A loader of `fields` (which must be fields of the cache), keeping decoded blocks within `budget_bytes`.
    pub fn new(cache: Arc<Cache>, split: Split, fields: &[String], budget_bytes: usize, device: Device) -> Loader {
        let specs = cache
            .manifest()
            .fields
            .iter()
            .filter(|spec| spec.splits.contains(&split) && fields.contains(&spec.name))
            .cloned()
            .collect();
        let blocks = Arc::new(BlockStore { budget_bytes, state: Mutex::default() });
        Loader { cache, fields: Arc::new(specs), blocks, device }
    }

    /// Decoded bytes of one record.
    pub fn record_bytes(&self) -> usize {
        self.fields.iter().map(FieldSpec::record_bytes).sum()
    }

    /// The batches of `locations`, `ahead` of them being built while one is used; in order, each or its error.
    pub fn stream<I>(&self, locations: I, ahead: usize) -> BatchStream<I::IntoIter>
    where
        I: IntoIterator<Item = Vec<Location>>,
    {
        BatchStream { loader: self.clone(), source: locations.into_iter(), pending: VecDeque::new(), ahead }
    }

    /// The batch of `locations`.
    fn build(&self, locations: &[Location]) -> Result<Batch> {
        let mut columns: Vec<Vec<u8>> =
            self.fields.iter().map(|spec| Vec::with_capacity(spec.record_bytes() * locations.len())).collect();
        for location in locations {
            let block = self.block(location.shard, location.block)?;
            for (spec, column) in self.fields.iter().zip(&mut columns) {
                column.extend_from_slice(block.row(&spec.name, location.row as usize));
            }
        }
        let labels: Vec<i64> = locations.iter().map(|location| location.label.unwrap_or(-1)).collect();
        let mut fields: HashMap<String, Tensor> = self
            .fields
            .iter()
            .zip(&columns)
            .map(|(spec, column)| {
                let shape: Vec<i64> =
                    std::iter::once(locations.len()).chain(spec.shape.iter().copied()).map(|n| n as i64).collect();
                let value = tensor::from_bytes(column, &shape, tensor::kind_of(spec.dtype));
                (spec.name.clone(), value.to_device(self.device))
            })
            .collect();
        let input = fields
            .remove(cab_pipelines::record::INPUT)
            .ok_or_else(|| anyhow!("the cache has no field `input`: it was not written for vision students"))?;
        Ok(Batch { input, labels: Tensor::from_slice(&labels).to_device(self.device), fields })
    }

    fn block(&self, shard: u32, block: u32) -> Result<Arc<Block>> {
        self.blocks.get((shard, block), self.record_bytes(), || {
            let names: Vec<&str> = self.fields.iter().map(|spec| spec.name.as_str()).collect();
            Ok(self.cache.read_block(shard, block, &names)?)
        })
    }
}

/// Batches in order, being built ahead.
#[derive(Debug)]
pub struct BatchStream<I> {
    loader: Loader,
    source: I,
    pending: VecDeque<Receiver<Result<Batch>>>,
    ahead: usize,
}

impl<I: Iterator<Item = Vec<Location>>> Iterator for BatchStream<I> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        while self.pending.len() <= self.ahead {
            let Some(locations) = self.source.next() else { break };
            let (sender, receiver) = bounded(1);
            let loader = self.loader.clone();
            rayon::spawn_fifo(move || {
                // The receiver is gone when the trainer stopped early: then nobody misses this batch.
                let _ = sender.send(loader.build(&locations));
            });
            self.pending.push_back(receiver);
        }
        let receiver = self.pending.pop_front()?;
        Some(receiver.recv().unwrap_or_else(|_| Err(anyhow!("a loader thread ended without a batch"))))
    }
}

/// A block that is decoded once, by whichever thread needs it first.
type Slot = Arc<OnceLock<Result<Arc<Block>, String>>>;

/// Decoded blocks, the oldest dropped when the budget is exceeded.
#[derive(Debug)]
struct BlockStore {
    budget_bytes: usize,
    state: Mutex<StoreState>,
}

#[derive(Debug, Default)]
struct StoreState {
    slots: HashMap<(u32, u32), Slot>,
    /// Least recently used first, with the bytes each takes.
    recent: VecDeque<((u32, u32), usize)>,
    bytes: usize,
}

impl BlockStore {
    fn get(&self, key: (u32, u32), record_bytes: usize, read: impl FnOnce() -> Result<Block>) -> Result<Arc<Block>> {
        let slot = {
            let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(slot) = state.slots.get(&key) {
                Slot::clone(slot)
            } else {
                let slot = Slot::default();
                state.slots.insert(key, Slot::clone(&slot));
                slot
            }
        };
        let mut fresh = false;
        let block = slot.get_or_init(|| {
            fresh = true;
            read().map(Arc::new).map_err(|error| format!("{error:#}"))
        });
        let block = block.as_ref().map_err(|error| anyhow!("{error}"))?;
        if fresh {
            let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let bytes = block.rows() * record_bytes;
            state.recent.push_back((key, bytes));
            state.bytes += bytes;
            while state.bytes > self.budget_bytes && state.recent.len() > 1 {
                if let Some((oldest, bytes)) = state.recent.pop_front() {
                    state.slots.remove(&oldest);
                    state.bytes -= bytes;
                }
            }
        }
        Ok(Arc::clone(block))
    }
}

/// Normalised images f32 of stored pixels u8 `[batch, channels, height, width]`: `(x / 255 - mean) / std` by channel.
pub fn normalise(input: &Tensor, mean: &[f64], std: &[f64]) -> Tensor {
    let channels = mean.len() as i64;
    let by_channel = |values: Vec<f32>| Tensor::from_slice(&values).to_device(input.device()).view([1, channels, 1, 1]);
    let scale = by_channel(std.iter().map(|s| (1.0 / (255.0 * s)) as f32).collect());
    let shift = by_channel(mean.iter().zip(std).map(|(m, s)| (m / s) as f32).collect());
    input.to_kind(Kind::Float) * scale - shift
}
