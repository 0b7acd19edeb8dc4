//! Samples, their medians, and where they go.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How often each contestant runs, unless it says otherwise.
pub(crate) const RUNS: usize = 12;

/// One who takes part, and how to let it run once and say how long that took.
pub(crate) type Contestant<'a> = &'a mut dyn FnMut() -> Result<Duration>;

/// Lets all contestants run in turn, once to warm up and then `runs` times, and returns for each its samples
/// in milliseconds.
pub(crate) fn interleave<const N: usize>(
    runs: usize,
    mut contestants: [Contestant<'_>; N],
) -> Result<[Vec<f64>; N]> {
    let mut samples = [const { Vec::new() }; N];
    for run in 0..=runs {
        for (contestant, samples) in contestants.iter_mut().zip(&mut samples) {
            let took = contestant()?;
            if run > 0 {
                samples.push(took.as_secs_f64() * 1000.0);
            }
        }
    }
    Ok(samples)
}

/// The rows of one area.
pub(crate) struct Report {
    area: &'static str,
    rows: Vec<Value>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(area: &'static str) -> Self {
        Self { area, rows: Vec::new() }
    }

    /// Prints one row and keeps it. `unit` is that of the samples: "ms", "MiB", ...
    pub(crate) fn compare(&mut self, name: &str, unit: &str, ours: &[f64], peer: &[f64]) {
        let (our_median, peer_median) = (median(ours), median(peer));
        let ratio = our_median / peer_median;
        println!("bench {name} {our_median:.3}{unit} {peer_median:.3}{unit} {ratio:.2}");
        self.rows.push(json!({
            "name": name, "unit": unit, "ratio": ratio,
            "ours": { "median": our_median, "samples": ours },
            "peer": { "median": peer_median, "samples": peer },
        }));
    }

    /// Writes the rows with their raw samples to `target/bench/<area>.json`.
    pub(crate) fn write(self) -> Result<()> {
        let folder = testkit::workspace().join("target/bench");
        let file = folder.join(format!("{}.json", self.area));
        let text = serde_json::to_string_pretty(&json!({ "area": self.area, "rows": self.rows }))?;
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&file, text + "\n"))
            .with_context(|| format!("failed to write {}", file.display()))
    }
}

/// The middle sample; of an even number the mean of the two in the middle.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_first_run_warms_up_and_is_not_counted() {
        let (order, rounds) = (RefCell::new(String::new()), Cell::new(0));
        let turn = |name| {
            order.borrow_mut().push(name);
            rounds.set(rounds.get() + 1);
            Ok(Duration::from_millis(rounds.get()))
        };
        let [first, second] = interleave(2, [&mut || turn('a'), &mut || turn('b')]).unwrap();
        assert_eq!((first, second), (vec![3.0, 5.0], vec![4.0, 6.0]));
        assert_eq!(*order.borrow(), "ababab");
    }
}
