//! Metrics of a run: `metrics.jsonl`, one object a line, and the same scalars as TensorBoard events.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Means over the steps since the last log line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meter {
    count: u64,
    sums: BTreeMap<String, f64>,
}

impl Meter {
    /// Counts one step.
    pub fn step(&mut self) {
        self.count += 1;
    }

    /// Adds `value` of the current step to the mean named `name`.
    pub fn add(&mut self, name: &str, value: f64) {
        match self.sums.get_mut(name) {
            Some(sum) => *sum += value,
            None => {
                self.sums.insert(name.to_owned(), value);
            }
        }
    }

    /// The means, leaving the meter empty.
    pub fn take(&mut self) -> BTreeMap<String, f64> {
        let count = self.count.max(1) as f64;
        self.count = 0;
        std::mem::take(&mut self.sums).into_iter().map(|(name, sum)| (name, sum / count)).collect()
    }
}

/// Appends to `metrics.jsonl` and the TensorBoard event file of a run directory.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    lines: File,
    events: EventFile,
}

impl MetricsWriter {
    /// Opens the metrics of a run at `step`: lines of later steps, left by a run that ended after its last checkpoint, are
    /// dropped, and the event file is written anew from the lines that stay.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(run_dir: &Path, step: u64) -> Result<MetricsWriter> {
        let path = run_dir.join("metrics.jsonl");
        let kept: Vec<Map<String, Value>> = if path.exists() {
            read(&path)?.into_iter().filter(|line| line.get("step").and_then(Value::as_u64) <= Some(step)).collect()
        } else {
            Vec::new()
        };
        for entry in fs::read_dir(run_dir).with_context(|| format!("reading {}", run_dir.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("events.out.tfevents.") {
                fs::remove_file(entry.path())?;
            }
        }
        let aside = run_dir.join("metrics.jsonl.partial");
        let mut text = String::new();
        for line in &kept {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        fs::write(&aside, text).with_context(|| format!("writing {}", aside.display()))?;
        fs::rename(&aside, &path)?;
        let lines =
            OpenOptions::new().append(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut events = EventFile::create(run_dir)?;
        for line in &kept {
            events.scalars(line)?;
        }
        Ok(MetricsWriter { path, lines, events })
    }

    /// Appends one line: `step`, `split`, `unix_secs` and `values`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&mut self, step: u64, split: &str, values: &BTreeMap<String, f64>) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("split".into(), split.into());
        for (name, value) in values {
            line.insert(name.clone(), (*value).into());
        }
        line.insert("unix_secs".into(), unix_secs().into());
        let text = serde_json::to_string(&line)? + "\n";
        self.lines.write_all(text.as_bytes()).with_context(|| format!("writing {}", self.path.display()))?;
        self.events.scalars(&line)
    }
}

/// The lines of a `metrics.jsonl`; a last line cut off by a crash is left out.
///
/// # Errors
/// When the file cannot be read, or a line before the last is no JSON object.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let lines: Vec<String> = BufReader::new(file)
        .lines()
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("reading {}", path.display()))?;
    let mut parsed = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(object) => parsed.push(object),
            Err(_) if index + 1 == lines.len() => break,
            Err(error) => return Err(error).with_context(|| format!("{} line {}", path.display(), index + 1)),
        }
    }
    Ok(parsed)
}

fn unix_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// A TensorBoard event file: length-prefixed, checksummed `Event` messages (TFRecord framing).
#[derive(Debug)]
struct EventFile {
    file: File,
}

impl EventFile {
    fn create(run_dir: &Path) -> Result<EventFile> {
        let path = run_dir.join(format!("events.out.tfevents.{:010}.cab", unix_secs() as u64));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut events = EventFile { file };
        let mut event = Vec::new();
        proto::double(&mut event, 1, unix_secs());
        proto::bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Every number of a metrics line as the scalar `split/name`.
    fn scalars(&mut self, line: &Map<String, Value>) -> Result<()> {
        let split = line.get("split").and_then(Value::as_str).unwrap_or("train");
        let mut summary = Vec::new();
        for (name, value) in line {
            if let (false, Some(value)) = (matches!(name.as_str(), "step" | "unix_secs"), value.as_f64()) {
                let mut scalar = Vec::new();
                proto::bytes(&mut scalar, 1, format!("{split}/{name}").as_bytes());
                proto::float(&mut scalar, 2, value as f32);
                proto::bytes(&mut summary, 1, &scalar);
            }
        }
        let mut event = Vec::new();
        proto::double(&mut event, 1, line.get("unix_secs").and_then(Value::as_f64).unwrap_or(0.0));
        proto::varint_field(&mut event, 2, line.get("step").and_then(Value::as_u64).unwrap_or(0));
        proto::bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let len = (data.len() as u64).to_le_bytes();
        let mut framed = Vec::with_capacity(data.len() + 16);
        framed.extend_from_slice(&len);
        framed.extend_from_slice(&masked_crc(&len).to_le_bytes());
        framed.extend_from_slice(data);
        framed.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.file.write_all(&framed).context("writing TensorBoard events")
    }
}

/// CRC32C as TFRecord stores it: rotated and offset, so that a checksum of checksums does not degenerate.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The few protocol-buffer wire types that events need.
mod proto {
    pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub(super) fn varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
        varint(out, field << 3);
        varint(out, value);
    }

    pub(super) fn double(out: &mut Vec<u8>, field: u64, value: f64) {
        varint(out, field << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn float(out: &mut Vec<u8>, field: u64, value: f32) {
        varint(out, field << 3 | 5);
        out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
        varint(out, field << 3 | 2);
        varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meter_means_over_its_steps_and_empties() {
        let mut meter = Meter::default();
        for value in [1.0, 2.0, 6.0] {
            meter.step();
            meter.add("loss", value);
        }
        assert_eq!(meter.take(), BTreeMap::from([("loss".to_owned(), 3.0)]));
        assert!(meter.take().is_empty());
    }

    #[test]
    fn reopening_drops_later_lines_and_rebuilds_events() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let values = BTreeMap::from([("loss".to_owned(), 0.1 + 0.2)]);
        let mut writer = MetricsWriter::open(dir.path(), 0).expect("open");
        for step in [10, 20, 30] {
            writer.write(step, "train", &values).expect("write");
        }
        drop(writer);
        let path = dir.path().join("metrics.jsonl");
        OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"step\": 4").expect("write");
        MetricsWriter::open(dir.path(), 20).expect("reopen");
        let lines = read(&path).expect("read");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["loss"].as_f64(), Some(0.1 + 0.2));
        let events = fs::read_dir(dir.path())
            .expect("list")
            .filter(|e| e.as_ref().expect("entry").file_name().to_string_lossy().starts_with("events"))
            .count();
        assert_eq!(events, 1);
    }
}
