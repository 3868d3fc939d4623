//! Which records an epoch visits, in which order: a pure function of (cache, seed, epoch).
//!
//! Blocks are visited in a shuffled order; the records of as many neighbouring blocks as fit a window are mixed. Reading
//! is then sequential enough for a disk, and random enough for training, whatever the size of the cache.

use std::ops::Range;

use cab_format::{Location, Split};
use cab_pipelines::random::{self, Stream};
use cab_pipelines::{recipe::TrainRecipe, subset};

/// The records of a run and how they lie in blocks.
#[derive(Debug)]
pub struct Order<'a> {
    /// All records of the training split.
    locations: &'a [Location],
    /// Positions in `locations` of the selected ones. 32 bits: a run's records are kept in memory several times.
    selected: Vec<u32>,
    /// Ranges of `selected` that lie in one block.
    blocks: Vec<Range<usize>>,
    /// Records that are mixed together.
    window_records: usize,
    seed: u64,
}

impl<'a> Order<'a> {
    /// The order of `recipe`'s records among `locations` (of the training split, sorted by record).
    ///
    /// `record_bytes` is what one decoded record takes of the window.
    pub fn new(locations: &'a [Location], recipe: &TrainRecipe, record_bytes: usize) -> Order<'a> {
        let samples = locations.iter().map(|l| l.sample as usize + 1).max().unwrap_or(0);
        let mut labels = vec![None; samples];
        for location in locations {
            labels[location.sample as usize] = location.label.map(|label| label as u32);
        }
        let mut taken = vec![false; samples];
        for sample in subset::balanced(&labels, recipe.fraction, recipe.seed) {
            taken[sample] = true;
        }
        let is_selected = |location: &Location| location.view < recipe.views && taken[location.sample as usize];
        let selected: Vec<u32> = (0..).zip(locations).filter(|(_, l)| is_selected(l)).map(|(at, _)| at).collect();
        let window_records = (recipe.window_bytes as usize / record_bytes.max(1)).max(recipe.batch_size);
        let blocks = block_ranges(locations, &selected);
        Order { locations, selected, blocks, window_records, seed: recipe.seed }
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

    /// The records of epoch `epoch`, each once, as positions in the locations.
    pub fn epoch(&self, epoch: u64) -> Vec<u32> {
        let stream = |window: u32| Stream::new(self.seed, epoch, window, random::Purpose::Order);
        let mut block_order = self.blocks.clone();
        subset::permute(&mut block_order, stream(0));
        let mut records: Vec<u32> = Vec::with_capacity(self.selected.len());
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
    order: &'a Order<'a>,
    batch_size: usize,
    epoch: u64,
    records: Vec<u32>,
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
            let taken = &self.records[self.position..self.position + take];
            batch.extend(taken.iter().map(|&at| self.order.locations[at as usize]));
            self.position += take;
        }
        Some(batch)
    }
}

/// Every held-out record, in record order, cut into batches.
pub fn evaluation(cache: &cab_format::Cache, batch_size: usize) -> Vec<Vec<Location>> {
    cache.locations(Split::Val).chunks(batch_size).map(<[Location]>::to_vec).collect()
}

fn block_ranges(locations: &[Location], selected: &[u32]) -> Vec<Range<usize>> {
    let block = |at: u32| (locations[at as usize].shard, locations[at as usize].block);
    let mut start = 0;
    let runs = selected.chunk_by(|&a, &b| block(a) == block(b));
    runs.map(|run| {
        start += run.len();
        start - run.len()..start
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 views of 40 samples of 4 classes, 7 records a block.
    fn locations() -> Vec<Location> {
        (0..120)
            .map(|record: u64| Location {
                record,
                label: Some(record as i64 % 40 % 4),
                sample: record as u32 % 40,
                view: record as u32 / 40,
                shard: 0,
                block: record as u32 / 7,
                row: record as u32 % 7,
            })
            .collect()
    }

    fn recipe(json: serde_json::Value) -> TrainRecipe {
        let mut base = serde_json::json!({
            "cache_digest": "", "student_name": "", "objective": "soft", "label_weight": 0.0, "bridge_weight": 3.0,
            "student": {"d_model": 8, "depth": 1, "d_state": 4, "expand": 2, "d_conv": 4, "patch": 4, "stride": 4,
                "height": 8, "width": 8, "channels": 1, "classes": 4},
            "bridge_schedule": "constant", "kernel": "none", "a_log_start": "bridge", "layer_map": [0], "steps": 1,
            "batch_size": 7, "lr": 0.1, "warmup_steps": 0, "weight_decay": 0.0, "betas": [0.9, 0.999], "clip_norm": 0.0,
            "ema": 0.0, "drop_path": 0.0, "seed": 5, "fraction": 1.0, "views": 3, "window_bytes": 200
        });
        for (key, value) in json.as_object().expect("an object") {
            base[key] = value.clone();
        }
        serde_json::from_value(base).expect("a recipe")
    }

    #[test]
    fn every_epoch_visits_every_record_once_in_its_own_order() {
        let locations = locations();
        let order = Order::new(&locations, &recipe(serde_json::json!({})), 10);
        let (first, second) = (order.epoch(0), order.epoch(1));
        assert_ne!(first, second);
        for mut epoch in [first.clone(), second] {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..120).collect::<Vec<u32>>());
        }
        assert_eq!(first, Order::new(&locations, &recipe(serde_json::json!({})), 10).epoch(0));
        // A window holds 20 records, so three blocks of 7: neighbours come from few blocks, but mixed.
        let blocks: std::collections::BTreeSet<u32> = first[..20].iter().map(|&at| at / 7).collect();
        assert!(blocks.len() <= 4, "{blocks:?}");
        assert!(first[..20].windows(2).any(|pair| pair[0] / 7 != pair[1] / 7 && pair[0] > pair[1]));
    }

    #[test]
    fn batches_run_through_epochs_and_can_start_anywhere() {
        let locations = locations();
        let recipe = recipe(serde_json::json!({}));
        let order = Order::new(&locations, &recipe, 10);
        let all: Vec<u64> = order.batches(0, 7).take(40).flatten().map(|location| location.record).collect();
        let expect: Vec<u64> = (0..3).flat_map(|epoch| order.epoch(epoch)).map(u64::from).take(280).collect();
        assert_eq!(all, expect);
        for step in [1, 17, 18, 35] {
            let batch: Vec<u64> = order.batches(step, 7).next().expect("endless").iter().map(|l| l.record).collect();
            assert_eq!(batch, all[7 * step as usize..7 * step as usize + 7]);
        }
    }

    #[test]
    fn fraction_and_views_select_balanced_samples() {
        let locations = locations();
        let order = Order::new(&locations, &recipe(serde_json::json!({"fraction": 0.2, "views": 2})), 10);
        assert_eq!(order.len(), 2 * 8);
        let mut by_class = [0; 4];
        for at in order.epoch(0) {
            assert!(locations[at as usize].view < 2);
            by_class[locations[at as usize].label.expect("labelled") as usize] += 1;
        }
        assert_eq!(by_class, [4; 4]);
    }
}
