//! Ctrl-C and SIGTERM: the first asks, the second leaves at once.

use formats::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a shell reports for a process that a signal ended, less the signal's number.
const SIGNALLED: i32 = 128;

/// Whether somebody asked this process to stop.
#[derive(Clone, Debug)]
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> Result<Interrupt> {
        let (asked, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for number in [SIGINT, SIGTERM] {
            // In this order: the first signal finds `asked` false and sets it, the second finds it true.
            let listened = signal_hook::flag::register_conditional_shutdown(
                number,
                SIGNALLED + number,
                Arc::clone(&asked),
            )
            .and_then(|_| signal_hook::flag::register(number, Arc::clone(&asked)))
            .and_then(|_| signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize));
            listened.map_err(|error| Error::Internal(format!("cannot listen for signals: {error}")))?;
        }
        // Handled, it is no longer deadly: a file grown past `ulimit -f` becomes an error that can be told.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
            .map_err(|error| Error::Internal(format!("cannot listen for signals: {error}")))?;
        Ok(Interrupt { signal })
    }

    /// The exit code to leave with, once a signal came.
    pub fn exit_code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            number => u8::try_from(SIGNALLED as usize + number).ok(),
        }
    }
}
