//! The catalog in memory: where every record lies, and which blocks every shard has.

use std::collections::HashMap;
use std::path::Path;

use crate::catalog::{Place, Table};
use crate::partial::BlockEntry;
use crate::{Error, Manifest, Result, Split};

/// Where one record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The record's id.
    pub record: u64,
    /// Class, if known.
    pub label: Option<i64>,
    /// The record's sample: samples of a split are numbered 0, 1, … as they first appear in order of record id.
    pub sample: u32,
    /// Which view of the sample.
    pub view: u32,
    /// Index of the shard.
    pub shard: u32,
    /// Block in the shard.
    pub block: u32,
    /// Row in the block.
    pub row: u32,
}

/// What opening a cache learns from its catalog.
#[derive(Debug)]
pub(crate) struct Index {
    /// Records of split train and of split val, each sorted by record id.
    pub(crate) locations: [Vec<Location>; 2],
    /// Blocks of every shard.
    pub(crate) blocks: Vec<Vec<BlockEntry>>,
}

impl Index {
    pub(crate) fn new(path: &Path, manifest: &Manifest, bytes: Vec<u8>) -> Result<Index> {
        let mut index = Index { locations: [Vec::new(), Vec::new()], blocks: vec![Vec::new(); manifest.shards.len()] };
        let mut samples: [HashMap<String, u32>; 2] = Default::default();
        let mut last_shard = 0;
        Table::new(path, bytes).places(|place| {
            let fault = |expected: String, found: String| inconsistent(path, &place, expected, found);
            if place.shard < last_shard {
                return Err(fault(format!("shard {last_shard} or a later one"), "an earlier one".into()));
            }
            last_shard = place.shard;
            let Some(entry) = manifest.shards.get(place.shard as usize) else {
                return Err(fault(format!("one of {} shards", manifest.shards.len()), "none of them".into()));
            };
            if place.split != entry.split {
                return Err(fault(format!("split {}", entry.split), place.split.to_string()));
            }
            index.blocks[place.shard as usize].place(&place, entry.bytes).map_err(|expected| {
                fault(expected, format!("row {} of {} bytes at {}", place.row, place.block_bytes, place.block_offset))
            })?;
            let samples = &mut samples[place.split as usize];
            let sample = match samples.get(place.sample_id) {
                Some(sample) => *sample,
                None => {
                    let sample = samples.len() as u32;
                    samples.insert(place.sample_id.to_owned(), sample);
                    sample
                }
            };
            index.locations[place.split as usize].push(Location {
                record: place.record,
                label: place.label,
                sample,
                view: place.view,
                shard: place.shard,
                block: place.block,
                row: place.row,
            });
            Ok(())
        })?;
        for (locations, samples) in index.locations.iter_mut().zip(&samples) {
            locations.sort_unstable_by_key(|location| location.record);
            number_samples(locations, samples.len());
        }
        index.check(path, manifest)?;
        Ok(index)
    }

    pub(crate) fn locations(&self, split: Split) -> &[Location] {
        &self.locations[split as usize]
    }

    /// Refuses counts other than the manifest's, and records that appear twice.
    fn check(&self, path: &Path, manifest: &Manifest) -> Result<()> {
        for (s, (entry, blocks)) in manifest.shards.iter().zip(&self.blocks).enumerate() {
            let rows: u64 = blocks.iter().map(|block| u64::from(block.rows)).sum();
            if blocks.len() != entry.blocks as usize || rows != entry.records {
                return Err(Error::Inconsistent {
                    path: path.to_path_buf(),
                    place: format!("shard {s}"),
                    expected: format!("{} records in {} blocks", entry.records, entry.blocks),
                    found: format!("{rows} in {}", blocks.len()),
                });
            }
        }
        let [train, val] = &self.locations;
        let mut records: Vec<_> = train.iter().chain(val).map(|l| (l.record, l.shard)).collect();
        records.sort_unstable();
        match records.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => Err(Error::DuplicateRecord {
                path: path.to_path_buf(),
                record: pair[0].0,
                first: pair[0].1,
                second: pair[1].1,
            }),
        }
    }
}

fn inconsistent(path: &Path, place: &Place<'_>, expected: String, found: String) -> Error {
    Error::Inconsistent {
        path: path.to_path_buf(),
        place: format!("record {} in shard {}, block {}", place.record, place.shard, place.block),
        expected,
        found,
    }
}

/// Renumbers samples by first appearance in `locations`.
fn number_samples(locations: &mut [Location], samples: usize) {
    let mut numbers = vec![u32::MAX; samples];
    let mut next = 0;
    for location in locations {
        let number = &mut numbers[location.sample as usize];
        if *number == u32::MAX {
            *number = next;
            next += 1;
        }
        location.sample = *number;
    }
}

trait Blocks {
    /// Adds the catalog's next row of this shard, or says what was expected instead.
    fn place(&mut self, place: &Place<'_>, shard_bytes: u64) -> Result<(), String>;
}

impl Blocks for Vec<BlockEntry> {
    fn place(&mut self, place: &Place<'_>, shard_bytes: u64) -> Result<(), String> {
        let entry =
            BlockEntry { offset: place.block_offset, bytes: place.block_bytes, crc32c: place.block_crc32c, rows: 1 };
        let blocks = self.len();
        match self.last_mut() {
            Some(last) if place.block as usize + 1 == blocks => {
                let same = BlockEntry { rows: last.rows, ..entry };
                if *last != same || place.row != last.rows {
                    return Err(format!("row {} of the same {} bytes", last.rows, last.bytes));
                }
                last.rows += 1;
                return Ok(());
            }
            Some(last) if place.block_offset != last.offset + last.bytes => {
                return Err(format!("a block at {}", last.offset + last.bytes));
            }
            _ => {}
        }
        let end = entry.offset.checked_add(entry.bytes);
        let inside = end.is_some_and(|end| end <= shard_bytes);
        if place.block as usize != blocks || place.row != 0 {
            return Err(format!("row 0 of block {blocks}"));
        }
        if !inside || !entry.offset.is_multiple_of(8) || entry.bytes == 0 {
            return Err(format!("a block at a multiple of 8 inside the {shard_bytes} bytes of the shard"));
        }
        self.push(entry);
        Ok(())
    }
}
