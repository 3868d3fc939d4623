//! The report: one self-contained page with the table of runs and their curves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use cab_pipelines::recipe::TrainRecipe;
use plotters::prelude::*;
use serde_json::{Map, Value, json};

use crate::metrics;

/// A run as read back from its directory.
#[derive(Debug)]
pub struct Run {
    /// Its directory.
    pub path: PathBuf,
    /// What it computed.
    pub recipe: TrainRecipe,
    /// Lines of metrics.jsonl.
    pub lines: Vec<Map<String, Value>>,
}

impl Run {
    /// The values of `name` over steps, for `split`.
    fn curve(&self, split: &str, name: &str) -> Vec<(f64, f64)> {
        self.lines
            .iter()
            .filter(|line| line.get("split").and_then(Value::as_str) == Some(split))
            .filter_map(|line| Some((line.get("step")?.as_f64()?, line.get(name)?.as_f64()?)))
            .collect()
    }

    /// The last value of `name` for `split`.
    fn last(&self, split: &str, name: &str) -> Option<f64> {
        self.curve(split, name).last().map(|point| point.1)
    }

    /// The mean over the logged steps of `name` for `split`.
    fn mean(&self, split: &str, name: &str) -> Option<f64> {
        let curve = self.curve(split, name);
        (!curve.is_empty()).then(|| curve.iter().map(|point| point.1).sum::<f64>() / curve.len() as f64)
    }
}

/// Parts of a training step, as the metrics name them, with what the report calls them.
const STEP_PARTS: [(&str, &str); 5] = [
    ("secs_data", "waiting for data"),
    ("secs_forward", "forward"),
    ("secs_bridge", "bridge"),
    ("secs_backward", "backward"),
    ("secs_optimizer", "optimizer"),
];

/// Reads run directories.
///
/// # Errors
/// When a directory holds no run.
pub fn read_runs(paths: &[PathBuf]) -> Result<Vec<Run>> {
    paths
        .iter()
        .map(|path| {
            let config = path.join("config.json");
            let text = fs::read_to_string(&config).with_context(|| {
                format!("{} is no run directory: {} cannot be read", path.display(), config.display())
            })?;
            let recipe = serde_json::from_str(&text).with_context(|| format!("{} is no recipe", config.display()))?;
            Ok(Run { path: path.clone(), recipe, lines: metrics::read(&path.join("metrics.jsonl"))? })
        })
        .collect()
}

/// Final top-1 in percent by objective and seed, seconds of training by objective and seed.
fn summary(runs: &[Run]) -> Value {
    let mut objectives: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
    for run in runs {
        let (name, seed) = (run.recipe.objective.name(), run.recipe.seed.to_string());
        if let Some(top1) = run.last("val", "top1") {
            objectives.entry(name).or_default().insert(seed.clone(), top1);
        }
        let step_secs: f64 = STEP_PARTS.iter().filter_map(|(part, _)| run.mean("train", part)).sum();
        seconds.insert(format!("train {name} {seed}"), step_secs * run.recipe.steps as f64);
    }
    json!({"objectives": objectives, "seconds": seconds})
}

/// Writes the summary as JSON. Keys that `path` already holds under `seconds` are kept.
///
/// # Errors
/// When the file cannot be written.
pub fn write_summary(runs: &[Run], path: &Path) -> Result<()> {
    let mut value = summary(runs);
    if let Ok(text) = fs::read_to_string(path)
        && let Ok(Value::Object(before)) = serde_json::from_str(&text)
        && let (Some(Value::Object(old)), Some(Value::Object(new))) = (before.get("seconds"), value.get_mut("seconds"))
    {
        for (name, secs) in old {
            new.entry(name.clone()).or_insert_with(|| secs.clone());
        }
    }
    fs::write(path, serde_json::to_string_pretty(&value)? + "\n").with_context(|| format!("writing {}", path.display()))
}

/// The table of objectives as text: seeds, mean and range of the final top-1.
pub fn table(runs: &[Run]) -> String {
    let mut text = String::from("objective   runs   top-1 mean   (lowest - highest)\n");
    for (name, values) in by_objective(runs) {
        let (mean, low, high) = spread(&values);
        let _ = writeln!(text, "{name:<11} {:>4}   {mean:>8.2} %   ({low:.2} - {high:.2})", values.len());
    }
    text
}

/// Final top-1 of the runs of each objective, weakest mean first.
fn by_objective(runs: &[Run]) -> Vec<(&'static str, Vec<f64>)> {
    let mut groups: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for run in runs {
        if let Some(top1) = run.last("val", "top1") {
            groups.entry(run.recipe.objective.name()).or_default().push(top1);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|a, b| spread(&a.1).0.total_cmp(&spread(&b.1).0));
    groups
}

fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (mean, low, high)
}

/// Writes the page.
///
/// # Errors
/// When a curve cannot be drawn or the file not be written.
pub fn write_page(runs: &[Run], path: &Path) -> Result<()> {
    let mut page = String::from(HEAD);
    page.push_str(
        "<h2>Accuracy by objective</h2><table><tr><th>objective<th>runs<th>top-1 mean<th>lowest<th>highest</tr>",
    );
    let groups = by_objective(runs);
    let best = groups.last().map(|group| group.0);
    for (name, values) in &groups {
        let (mean, low, high) = spread(values);
        let class = if Some(*name) == best { " class=best" } else { "" };
        let _ = write!(page, "<tr{class}><td>{name}<td>{}<td>{mean:.2} %<td>{low:.2}<td>{high:.2}</tr>", values.len());
    }
    page.push_str("</table><h2>Runs</h2><table><tr><th>run<th>student<th>objective<th>seed<th>steps<th>top-1<th>top-5<th>val loss<th>teacher top-1<th>agreement</tr>");
    for run in runs {
        let value = |name| run.last("val", name).map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escape(&run.path.display().to_string()),
            escape(&run.recipe.student_name),
            run.recipe.objective.name(),
            run.recipe.seed,
            run.recipe.steps,
            value("top1"),
            value("top5"),
            run.last("val", "loss").map_or_else(|| "–".to_owned(), |loss| format!("{loss:.4}")),
            value("teacher_top1"),
            value("agreement"),
        );
    }
    page.push_str("</table>");
    for (title, split, name, unit) in [
        ("Accuracy on the held-out split", "val", "top1", "top-1, %"),
        ("Loss on the held-out split", "val", "loss", "cross-entropy"),
        ("Training loss", "train", "loss", "weighted sum of terms"),
        ("Soft distillation term", "train", "soft", "KL"),
        ("Bridge term", "train", "bridge", "mean squared error"),
    ] {
        if let Some(svg) = plot(runs, split, name, unit)? {
            let _ = write!(page, "<h2>{title}</h2><figure>{svg}</figure>");
        }
    }
    page.push_str("<h2>Where a step's time goes</h2><table><tr><th>run");
    for (_, title) in STEP_PARTS {
        let _ = write!(page, "<th>{title}, ms");
    }
    page.push_str("</tr>");
    for run in runs {
        let _ = write!(page, "<tr><td>{}", escape(&run.path.display().to_string()));
        for (name, _) in STEP_PARTS {
            let _ = write!(page, "<td>{:.2}", 1e3 * run.mean("train", name).unwrap_or(0.0));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table></main></html>\n");
    fs::write(path, page).with_context(|| format!("writing {}", path.display()))
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>
<title>Distillation runs</title><style>
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0;background:Canvas;color:CanvasText}
main{max-width:60rem;margin:auto;padding:1rem}table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}th:first-child,td:first-child{text-align:left}
.best{font-weight:bold}figure{margin:0;background:#fff;border-radius:6px}figure svg{width:100%;height:auto}
</style><main><h1>Distillation runs</h1>
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One colour an objective, one line a run; nothing when no run has the value.
fn plot(runs: &[Run], split: &str, name: &str, unit: &str) -> Result<Option<String>> {
    let curves: Vec<(&Run, Vec<(f64, f64)>)> =
        runs.iter().map(|run| (run, run.curve(split, name))).filter(|(_, curve)| !curve.is_empty()).collect();
    let points = || curves.iter().flat_map(|(_, curve)| curve.iter());
    let (Some(last_step), false) = (points().map(|point| point.0).reduce(f64::max), curves.is_empty()) else {
        return Ok(None);
    };
    let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.05).max(1e-6);
    let mut svg = String::new();
    draw(&mut svg, &curves, last_step, (low - margin)..(high + margin), unit)
        .map_err(|error| anyhow!("drawing {split}/{name}: {error}"))?;
    Ok(Some(svg))
}

type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn draw(
    svg: &mut String,
    curves: &[(&Run, Vec<(f64, f64)>)],
    last_step: f64,
    range: std::ops::Range<f64>,
    unit: &str,
) -> DrawResult {
    let root = SVGBackend::with_string(svg, (800, 360)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last_step.max(1.0), range)?;
    chart.configure_mesh().x_desc("step").y_desc(unit).light_line_style(TRANSPARENT).draw()?;
    let mut named: Vec<&str> = Vec::new();
    for (run, curve) in curves {
        let objective = run.recipe.objective.name();
        let color = match objective {
            "vanilla" => RGBColor(120, 120, 120),
            "soft" => RGBColor(30, 110, 200),
            "bridge" => RGBColor(30, 150, 90),
            _ => RGBColor(210, 70, 40),
        };
        let series = chart.draw_series(LineSeries::new(curve.iter().copied(), color.stroke_width(2)))?;
        if !named.contains(&objective) {
            named.push(objective);
            series
                .label(objective)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(TRANSPARENT).draw()?;
    root.present()?;
    Ok(())
}
