//! Learning rate and bridge weight as functions of the step.

use std::f64::consts::PI;

use cab_pipelines::recipe::BridgeSchedule;

/// Learning rate of update `step` (from 0): linear warm-up over `warmup` updates, then half a cosine down to 0.
pub fn learning_rate(peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
    peak * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
}

/// Weight of the bridge loss at update `step` of `total`.
pub fn bridge_weight(peak: f64, schedule: BridgeSchedule, step: u64, total: u64) -> f64 {
    let progress = step as f64 / total.max(1) as f64;
    match schedule {
        BridgeSchedule::Constant => peak,
        BridgeSchedule::Linear { until } => peak * (1.0 - progress / until).max(0.0),
        BridgeSchedule::Cosine { until } => peak * 0.5 * (1.0 + (PI * (progress / until).min(1.0)).cos()),
        BridgeSchedule::Stop { after } => {
            if progress < after {
                peak
            } else {
                0.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_warms_up_then_falls_to_zero() {
        assert_eq!(learning_rate(1.0, 0, 4, 100), 0.25);
        assert_eq!(learning_rate(1.0, 3, 4, 100), 1.0);
        assert_eq!(learning_rate(1.0, 4, 4, 100), 1.0);
        assert!((learning_rate(1.0, 52, 4, 100) - 0.5).abs() < 1e-12);
        assert!(learning_rate(1.0, 100, 4, 100) < 1e-12);
        assert_eq!(learning_rate(2.0, 0, 0, 10), 2.0);
    }

    #[test]
    fn bridge_weight_follows_its_schedule() {
        let at = |schedule, step| bridge_weight(3.0, schedule, step, 100);
        assert_eq!(at(BridgeSchedule::Constant, 99), 3.0);
        assert_eq!(at(BridgeSchedule::Linear { until: 1.0 }, 50), 1.5);
        assert_eq!(at(BridgeSchedule::Linear { until: 0.5 }, 75), 0.0);
        assert!((at(BridgeSchedule::Cosine { until: 0.5 }, 25) - 1.5).abs() < 1e-12);
        assert!(at(BridgeSchedule::Cosine { until: 0.5 }, 80).abs() < 1e-12);
        assert_eq!(at(BridgeSchedule::Stop { after: 0.3 }, 29), 3.0);
        assert_eq!(at(BridgeSchedule::Stop { after: 0.3 }, 30), 0.0);
    }
}
