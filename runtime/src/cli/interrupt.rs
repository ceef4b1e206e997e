//! Ctrl-C and SIGTERM: the first ends the work in order, the second ends the process.

use runtime::session::Canceller;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How long a signal may go unnoticed.
const PATIENCE: Duration = Duration::from_millis(10);

/// What a shell reports of a process that a signal ended: 128 and the signal's number.
const ENDED_BY: [(i32, u8); 2] = [(SIGINT, 130), (SIGTERM, 143)];

/// Whether a signal came.
#[derive(Debug)]
pub struct Interrupt {
    code: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on a signal cancels the session. Where signals cannot be caught, they go on ending the process.
    pub fn watch(canceller: Canceller) -> Interrupt {
        let code = Arc::new(AtomicUsize::new(0));
        let asked = Arc::new(AtomicBool::new(false));
        let caught = ENDED_BY.iter().all(|&(signal, value)| {
            // In this order: the first signal finds `asked` unset, and sets it.
            flag::register_conditional_shutdown(signal, i32::from(value), Arc::clone(&asked)).is_ok()
                && flag::register_usize(signal, Arc::clone(&code), usize::from(value)).is_ok()
                && flag::register(signal, Arc::clone(&asked)).is_ok()
        });
        if caught {
            let code = Arc::clone(&code);
            // A handler may do next to nothing, so a thread of its own looks at what it left. It ends with the process.
            // Where there can be no such thread, the second signal still ends the process.
            let _ = thread::Builder::new().spawn(move || {
                while code.load(Ordering::Relaxed) == 0 {
                    thread::sleep(PATIENCE);
                }
                canceller.cancel();
            });
        }
        Interrupt { code }
    }

    /// The exit code of a process whose work was cancelled.
    pub fn exit_code(&self) -> u8 {
        let code = self.code.load(Ordering::Relaxed) as u8;
        if code == 0 { ENDED_BY[0].1 } else { code }
    }
}

/// Ctrl-C in a conversation: it ends the answer under way, or the process where nothing is under way. SIGTERM ends the
/// process always.
#[derive(Debug)]
pub struct Attention {
    /// Whether the process waits for its user.
    waiting: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
    canceller: Canceller,
}

impl Attention {
    /// From now on. Where signals cannot be caught, they go on ending the process.
    pub fn watch(canceller: Canceller) -> Attention {
        let (waiting, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let attention = Attention {
            waiting: Arc::clone(&waiting),
            asked: Arc::clone(&asked),
            canceller: canceller.clone(),
        };
        let [(interrupt, code), _] = ENDED_BY;
        let caught = flag::register_conditional_shutdown(interrupt, i32::from(code), waiting).is_ok()
            && flag::register(interrupt, Arc::clone(&asked)).is_ok();
        if caught {
            // As above: it ends with the process, and without it an answer takes its time.
            let _ = thread::Builder::new().spawn(move || {
                loop {
                    thread::sleep(PATIENCE);
                    if asked.swap(false, Ordering::Relaxed) {
                        canceller.cancel();
                    }
                }
            });
        }
        attention
    }

    /// The user is to speak: a signal ends the process.
    pub fn waiting(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// The model is to speak: a signal ends what it says, whatever came before.
    pub fn answering(&self) {
        self.waiting.store(false, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
        self.canceller.clear();
    }
}
