//! Where the time of a training step goes.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A part of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Waiting for a batch.
    Data,
    /// The model and its loss.
    Forward,
    /// Gradients.
    Backward,
    /// The optimizer.
    Step,
    /// TPGM's projection update, with its own forward and backward pass over held-out data.
    Projection,
}

impl Part {
    /// All, in the order in which they run.
    pub const ALL: [Part; 5] = [Part::Data, Part::Forward, Part::Backward, Part::Step, Part::Projection];

    /// As in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Data => "data",
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Step => "step",
            Part::Projection => "projection",
        }
    }
}

/// Seconds spent in each part, over some steps. Saved with a run, it goes on adding up after an interruption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    steps: u64,
    seconds: [f64; Part::ALL.len()],
}

impl StepTimes {
    /// Does `work` and adds the time that it took.
    pub fn time<R>(&mut self, part: Part, work: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = work();
        self.add(part, begun.elapsed());
        result
    }

    /// Adds time to a part.
    pub fn add(&mut self, part: Part, time: Duration) {
        self.seconds[part as usize] += time.as_secs_f64();
    }

    /// Counts a step.
    pub fn count_step(&mut self) {
        self.steps += 1;
    }

    /// Steps counted.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Seconds of one part, over all steps.
    pub fn seconds(&self, part: Part) -> f64 {
        self.seconds[part as usize]
    }

    /// Seconds of all parts, over all steps.
    pub fn total(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// Milliseconds of one part in a mean step; 0 before the first one.
    pub fn milliseconds(&self, part: Part) -> f64 {
        1e3 * self.seconds(part) / self.steps.max(1) as f64
    }

    /// Share of a part in the time of all parts, in `[0, 1]`.
    pub fn share(&self, part: Part) -> f64 {
        if self.total() > 0.0 { self.seconds(part) / self.total() } else { 0.0 }
    }

    /// The parts that took time, with milliseconds per step and share.
    fn parts(&self) -> impl Iterator<Item = (&'static str, f64, f64)> {
        let used = Part::ALL.into_iter().filter(|part| self.seconds(*part) > 0.0);
        used.map(|part| (part.name(), self.milliseconds(part), self.share(part)))
    }
}

impl fmt::Display for StepTimes {
    /// `480.1 ms per step: data 0.1 (0.0 %), forward 120.0 (25.0 %), ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms per step", 1e3 * self.total() / self.steps.max(1) as f64)?;
        for (number, (name, milliseconds, share)) in self.parts().enumerate() {
            let separator = if number == 0 { ":" } else { "," };
            write!(f, "{separator} {name} {milliseconds:.1} ({:.1} %)", 100.0 * share)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_over_steps_and_a_save() {
        let mut times = StepTimes::default();
        assert_eq!(times.to_string(), "0.0 ms per step");
        times.add(Part::Forward, Duration::from_millis(30));
        times.count_step();
        let text = serde_json::to_string(&times).unwrap();
        let mut times: StepTimes = serde_json::from_str(&text).unwrap();
        times.add(Part::Step, Duration::from_millis(10));
        times.count_step();
        assert_eq!(times.to_string(), "20.0 ms per step: forward 15.0 (75.0 %), step 5.0 (25.0 %)");
        assert_eq!(times.time(Part::Data, || 7), 7);
        assert!(times.seconds(Part::Data) >= 0.0 && times.steps() == 2);
    }
}
