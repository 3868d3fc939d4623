//! Which records an epoch visits, in which order: a pure function of (cache, seed, epoch).
//!
//! Blocks are visited in a shuffled order; the records of as many neighbouring blocks as fit a window are mixed. Reading
//! is then sequential enough for a disk, and random enough for training, whatever the size of the cache.

use cab_format::{Location, Split};
use cab_pipelines::random::{self, Stream};
use cab_pipelines::{recipe::TrainRecipe, subset};

/// The records of a run and how they lie in blocks.
#[derive(Debug)]
pub struct Order {
    /// Locations of the selected records.
    selected: Vec<Location>,
    /// Ranges of `selected` that lie in one block.
    blocks: Vec<std::ops::Range<usize>>,
    /// Records that are mixed together.
    window_records: usize,
    seed: u64,
}

impl Order {
    /// The order of `recipe`'s records among `locations` (of the training split, sorted by record).
    ///
    /// `record_bytes` is what one decoded record takes of the window.
    pub fn new(locations: &[Location], recipe: &TrainRecipe, record_bytes: usize) -> Order {
        let samples = locations.iter().map(|l| l.sample as usize + 1).max().unwrap_or(0);
        let mut labels = vec![None; samples];
        for location in locations {
            labels[location.sample as usize] = location.label.map(|label| label as u32);
        }
        let mut taken = vec![false; samples];
        for sample in subset::balanced(&labels, recipe.fraction, recipe.seed) {
            taken[sample] = true;
        }
        let selected: Vec<Location> = locations
            .iter()
            .filter(|location| location.view < recipe.views && taken[location.sample as usize])
            .copied()
            .collect();
        let window_records = (recipe.window_bytes as usize / record_bytes.max(1)).max(recipe.batch_size);
        let blocks = block_ranges(&selected);
        Order { selected, blocks, window_records, seed: recipe.seed }
    }

    /// Number of records an epoch.
    pub fn len(&self) -> usize {
        self.selected.len()
    }

    /// Whether no record is selected.
    pub fn is_empty(&self) -> bool {
        self.selected.is_empty()
    }

    /// The batches from update `step` on: batch `i` holds records `i * batch_size..` of the epochs laid end to end.
    ///
    /// # Panics
    /// When no record is selected.
    pub fn batches(&self, step: u64, batch_size: usize) -> Batches<'_> {
        assert!(!self.is_empty(), "an order of no records has no batches");
        let first = step * batch_size as u64;
        let (epoch, position) = (first / self.len() as u64, (first % self.len() as u64) as usize);
        Batches { order: self, batch_size, epoch, records: self.epoch(epoch), position }
    }

    /// The records of epoch `epoch`, each once.
    pub fn epoch(&self, epoch: u64) -> Vec<Location> {
        let stream = |window: u32| Stream::new(self.seed, epoch, window, random::Purpose::Order);
        let mut block_order = self.blocks.clone();
        subset::permute(&mut block_order, stream(0));
        let mut records: Vec<Location> = Vec::with_capacity(self.selected.len());
        let (mut window, mut window_start) = (1, 0);
        for block in block_order {
            if records.len() - window_start >= self.window_records {
                subset::permute(&mut records[window_start..], stream(window));
                (window, window_start) = (window + 1, records.len());
            }
            records.extend_from_slice(&self.selected[block]);
        }
        subset::permute(&mut records[window_start..], stream(window));
        records
    }
}

/// Batches of the endless sequence of epochs; a batch may end one epoch and begin the next.
#[derive(Debug)]
pub struct Batches<'a> {
    order: &'a Order,
    batch_size: usize,
    epoch: u64,
    records: Vec<Location>,
    position: usize,
}

impl Iterator for Batches<'_> {
    type Item = Vec<Location>;

    fn next(&mut self) -> Option<Vec<Location>> {
        let mut batch = Vec::with_capacity(self.batch_size);
        while batch.len() < self.batch_size {
            if self.position == self.records.len() {
                self.epoch += 1;
                self.records = self.order.epoch(self.epoch);
                self.position = 0;
            }
            let take = (self.batch_size - batch.len()).min(self.records.len() - self.position);
            batch.extend_from_slice(&self.records[self.position..self.position + take]);
            self.position += take;
        }
        Some(batch)
    }
}

/// Every held-out record, in record order, cut into batches.
pub fn evaluation(cache: &cab_format::Cache, batch_size: usize) -> Vec<Vec<Location>> {
    cache.locations(Split::Val).chunks(batch_size).map(<[Location]>::to_vec).collect()
}

fn block_ranges(selected: &[Location]) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for end in 1..=selected.len() {
        let block = |i: usize| (selected[i].shard, selected[i].block);
        if end == selected.len() || block(end) != block(start) {
            ranges.push(start..end);
            start = end;
        }
    }
    ranges
}
