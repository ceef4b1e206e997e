//! Checkpoints written beside training: what was taken of a run is made durable by a thread of its own, while the next
//! steps run.
//!
//! At most one is under way. Only what is durable is said to be saved, by the thread that trains, when it looks or waits.
//! Nothing here sees a learner: what a checkpoint holds comes whole, as a [`TrainState`].

use crate::progress::Progress;
use crate::run::{Metrics, Run};
use crate::state::TrainState;
use formats::checkpoint::{self, Commit, Dtype, GenerationConfig, ModelFiles};
use formats::tokenizer::Tokenizer;
use formats::{Config, Layout, Result};
use std::panic;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// What all checkpoints of a run have in common, and where they go. Whoever writes one holds the run, and with it the
/// lock.
pub(crate) struct Frame {
    pub run: Arc<Run>,
    pub metrics: Metrics,
    pub config: Config,
    pub layout: Layout,
    pub tokenizer: Tokenizer,
    pub generation: GenerationConfig,
    pub dtype: Dtype,
    /// How many of the newest are kept.
    pub keep: usize,
}

impl Frame {
    /// Model and state, committed together, after the rows of the steps before them.
    fn write(&self, state: &TrainState) -> Result<()> {
        self.metrics.sync()?;
        let mut commit = Commit::begin(&self.run.checkpoints(), state.step)?;
        let model = ModelFiles {
            config: &self.config,
            layout: &self.layout,
            dtype: self.dtype,
            values: &state.weights,
            tokenizer: Some(&self.tokenizer),
            generation: &self.generation,
        };
        checkpoint::write_model(&mut commit, "model/", &model)?;
        state.write(&mut commit)?;
        commit.finish()?;
        self.settle(state.step)
    }

    /// What follows a commit: the link to the newest model, and the older checkpoints that are not to be kept.
    fn settle(&self, step: u64) -> Result<()> {
        checkpoint::point(self.run.path(), step)?;
        checkpoint::retain(&self.run.checkpoints(), self.keep)
    }
}

/// Who writes the checkpoints of a run. Dropped, it waits for the one under way.
pub(crate) struct Saver {
    /// None in a process that leaves writing to the first of its run.
    frame: Option<Arc<Frame>>,
    saved: Option<u64>,
    under_way: Option<(u64, JoinHandle<Result<()>>)>,
}

impl Saver {
    /// Of a run whose checkpoint of the step `saved`, if any, is the newest.
    pub fn new(frame: Frame, saved: Option<u64>) -> Saver {
        Saver { frame: Some(Arc::new(frame)), saved, under_way: None }
    }

    /// Of such a run in a process that leaves writing to the first of it.
    pub fn of_another_process(saved: Option<u64>) -> Saver {
        Saver { frame: None, saved, under_way: None }
    }

    /// Whether this process writes.
    pub fn writes(&self) -> bool {
        self.frame.is_some()
    }

    /// The run's metrics, if this process writes.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.frame.as_ref().map(|frame| &frame.metrics)
    }

    /// The step of the newest checkpoint that is known to be intact.
    pub fn saved(&self) -> Option<u64> {
        self.saved
    }

    /// Makes sure of the link and the retention, which a kill right after a commit may have forestalled.
    pub fn settle(&self) -> Result<()> {
        match (&self.frame, self.saved) {
            (Some(frame), Some(step)) => frame.settle(step),
            _ => Ok(()),
        }
    }

    /// Begins to write a checkpoint, after the one before.
    pub fn begin(&mut self, state: TrainState, progress: &mut Progress) -> Result<()> {
        let Some(frame) = self.frame.clone() else { return Ok(()) };
        let step = state.step;
        self.start(thread::Builder::new(), step, move || frame.write(&state), progress)
    }

    fn start(
        &mut self,
        thread: thread::Builder,
        step: u64,
        write: impl Fn() -> Result<()> + Send + Sync + 'static,
        progress: &mut Progress,
    ) -> Result<()> {
        self.wait(progress)?;
        let write = Arc::new(write);
        let beside = Arc::clone(&write);
        match thread.name("lectern-saver".to_owned()).spawn(move || beside()) {
            Ok(thread) => self.under_way = Some((step, thread)),
            // A system that gives no thread is no reason to lose what was learned; training waits.
            Err(_) => {
                write()?;
                self.tell(step, progress);
            }
        }
        Ok(())
    }

    /// Says what was saved, or gives what went wrong with it, once that is known. Allocates nothing until then.
    pub fn look(&mut self, progress: &mut Progress) -> Result<()> {
        match &self.under_way {
            Some((_, thread)) if thread.is_finished() => self.wait(progress),
            _ => Ok(()),
        }
    }

    /// The same, once the one under way, if any, is finished.
    pub fn wait(&mut self, progress: &mut Progress) -> Result<()> {
        let Some((step, thread)) = self.under_way.take() else { return Ok(()) };
        // A panic is a bug of ours, on that thread as on this one.
        thread.join().unwrap_or_else(|bug| panic::resume_unwind(bug))?;
        self.tell(step, progress);
        Ok(())
    }

    fn tell(&mut self, step: u64, progress: &mut Progress) {
        self.saved = Some(step);
        progress.message(&format!("saved step {step}"));
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Some((_, thread)) = self.under_way.take() {
            // Only a panic comes here with one under way; what was saved is found by whoever resumes.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
