//! Whether the other processes of a run are still there.
//!
//! What NCCL sums waits for every process, for ever if one is gone. So the lines by which the processes met stay open: the
//! first has one to each other process. A line that breaks without a farewell says that who was at its other end is gone.
//! Nothing here knows a device.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a process says that needs the others no more.
const FAREWELL: u8 = b'.';
/// How long one is missed before it is said: what ends all processes alike ends the others of themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How often one that waits looks whether it still should.
const GLANCE: Duration = Duration::from_millis(20);

/// Lines to other processes, watched.
pub struct Watch {
    lines: Vec<TcpStream>,
    /// Set before the lines are closed from this side.
    over: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Watches a line to each of some processes; `missed` is told the number of one that is gone.
    pub fn new(
        lines: Vec<(usize, TcpStream)>,
        missed: impl Fn(usize) + Clone + Send + 'static,
    ) -> std::io::Result<Watch> {
        let mut watch = Watch { lines: vec![], over: Arc::default(), watchers: vec![] };
        for (rank, line) in lines {
            line.set_read_timeout(None)?;
            let (mut other, over, missed) = (line.try_clone()?, Arc::clone(&watch.over), missed.clone());
            watch.lines.push(line);
            watch.watchers.push(std::thread::Builder::new().name(format!("watches {rank}")).spawn(
                move || {
                    let mut said = [0];
                    if other.read_exact(&mut said).is_ok() && said == [FAREWELL] {
                        return;
                    }
                    let broke = Instant::now();
                    while broke.elapsed() < GRACE && !over.load(Ordering::Relaxed) {
                        std::thread::sleep(GLANCE);
                    }
                    if !over.load(Ordering::Relaxed) {
                        missed(rank);
                    }
                },
            )?);
        }
        Ok(watch)
    }

    /// Says to the others that this process needs them no more.
    pub fn farewell(&self) {
        for mut line in &self.lines {
            // Who is not there to hear it does not wait for it.
            let _ = line.write_all(&[FAREWELL]);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for line in &self.lines {
            let _ = line.shutdown(Shutdown::Both);
        }
        for watcher in self.watchers.drain(..) {
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("sound");
        let one = TcpStream::connect(listener.local_addr().expect("sound")).expect("sound");
        (one, listener.accept().expect("sound").0)
    }

    fn watch(lines: Vec<(usize, TcpStream)>) -> (Watch, Receiver<usize>) {
        let (tell, told) = channel();
        let missed = move |rank| tell.send(rank).expect("the test listens");
        (Watch::new(lines, missed).expect("sound"), told)
    }

    #[test]
    fn who_goes_without_a_word_is_missed_and_who_says_farewell_is_not() {
        let ((silent, its), (polite, theirs)) = (pair(), pair());
        let (watch, told) = watch(vec![(3, its), (5, theirs)]);
        let (other, _) = self::watch(vec![(0, polite)]);
        other.farewell();
        drop((other, silent));
        assert_eq!(told.recv_timeout(2 * GRACE), Ok(3));
        drop(watch);
        assert!(told.recv().is_err(), "nobody else was missed");
    }

    #[test]
    fn whose_own_run_is_over_misses_nobody() {
        let (silent, its) = pair();
        let (watch, told) = watch(vec![(1, its)]);
        drop(silent);
        std::thread::sleep(2 * GLANCE);
        drop(watch);
        assert!(told.recv().is_err());
    }
}
