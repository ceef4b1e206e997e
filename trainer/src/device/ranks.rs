//! The processes of one run: which of them this is, as whoever started it says, and how they first meet.
//!
//! `torchrun`, Open MPI's `mpirun` and Slurm's `srun` each set variables that number the processes. Before NCCL can join
//! them, the first must give the others a few bytes: it listens one port above MASTER_PORT, since torchrun itself listens
//! on that one. Nothing here knows a device.

use formats::{Error, Result};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Where the first process listens unless told, less one: what torchrun takes.
const PORT: u16 = 29500;
/// First bytes of a process that asks.
const GREETING: &[u8; 16] = b"lectern ranks 1\n";
/// How long processes wait for one another to begin.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one that has begun to speak may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Between two attempts to reach the first process.
const PAUSE: Duration = Duration::from_millis(100);

/// One process of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// Its number among those of its machine, which is the number of its device.
    pub local: usize,
    /// The machine of the first.
    master: String,
    /// Where it listens.
    port: u16,
}

/// What a starter of processes calls things: its own name, then rank, world, local rank.
const STARTERS: [(&str, [&str; 3]); 3] = [
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK"]),
    ("mpirun", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"]),
    // Of a step, which srun sets; a batch script itself has a rank and is one process all the same.
    ("srun", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"]),
];

impl Ranks {
    /// What this process's environment says; none where nobody numbered it.
    pub fn from_environment() -> Result<Option<Ranks>> {
        Ranks::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Result<Option<Ranks>> {
        let number = |name: &str| match get(name).map(|text| (text.trim().parse::<usize>(), text)) {
            None => Ok(None),
            Some((Ok(number), _)) => Ok(Some(number)),
            Some((Err(_), text)) => Err(Error::config("environment", name, text, "a whole number")),
        };
        for (starter, names @ [rank, world, local]) in STARTERS {
            if names.iter().any(|name| get(name).is_none()) {
                continue;
            }
            let (Some(rank_of), Some(world_of), Some(local_of)) =
                (number(rank)?, number(world)?, number(local)?)
            else {
                continue;
            };
            if rank_of >= world_of {
                return Err(Error::config(
                    "environment",
                    rank,
                    rank_of,
                    format!("less than {world} ({world_of})"),
                ));
            }
            let master = get("MASTER_ADDR").or_else(|| alone_or_first(&get, world_of)).ok_or_else(|| {
                Error::Usage(format!(
                    "{starter} started {world_of} processes on several machines and did not say where the first is\n  \
                     help: set MASTER_ADDR to the name of its machine"
                ))
            })?;
            let base = match get("MASTER_PORT") {
                None => PORT,
                Some(text) => text.trim().parse().ok().filter(|&port| port < u16::MAX).ok_or_else(|| {
                    Error::config(
                        "environment",
                        "MASTER_PORT",
                        text,
                        format!("a port from 0 to {}", u16::MAX - 1),
                    )
                })?,
            };
            return Ok(Some(Ranks {
                rank: rank_of,
                world: world_of,
                local: local_of,
                master,
                port: base + 1,
            }));
        }
        Ok(None)
    }

    /// Whether this is the process that writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Gives every process the bytes that `make` makes in the first, and with them the lines by which they came: to each
    /// other process from the first, to the first from each other.
    pub fn share<const N: usize>(
        &self,
        make: impl FnOnce() -> Result<[u8; N]>,
    ) -> Result<([u8; N], Vec<(usize, TcpStream)>)> {
        match (self.world, self.rank) {
            (1, _) => Ok((make()?, vec![])),
            (_, 0) => {
                let bytes = make()?;
                let listener = TcpListener::bind(("0.0.0.0", self.port)).map_err(|error| {
                    Error::Device(format!(
                        "the processes of this run cannot meet: port {} cannot be listened on: {error}\n  \
                         help: set MASTER_PORT to another number for all of them",
                        self.port
                    ))
                })?;
                let lines = self.give(&listener, &bytes)?;
                Ok((bytes, lines))
            }
            _ => self.fetch().map(|(bytes, line)| (bytes, vec![(0, line)])),
        }
    }

    /// Answers every other process.
    fn give(&self, listener: &TcpListener, bytes: &[u8]) -> Result<Vec<(usize, TcpStream)>> {
        let begin = Instant::now();
        let mut lines: BTreeMap<usize, TcpStream> = BTreeMap::new();
        listener.set_nonblocking(true).map_err(|error| self.apart(&error.to_string()))?;
        while let Some(missing) = (1..self.world).find(|rank| !lines.contains_key(rank)) {
            match listener.accept() {
                // Whoever is not of us is left standing, and cannot hold us up for long.
                Ok((stream, _)) => {
                    lines.extend(self.answer(stream, bytes));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE / 10),
                Err(error) => return Err(self.apart(&error.to_string())),
            }
            if begin.elapsed() > PATIENCE {
                return Err(self.apart(&format!("process {missing} did not come")));
            }
        }
        Ok(lines.into_iter().collect())
    }

    /// Answers one process, and says which it was.
    fn answer(&self, mut stream: TcpStream, bytes: &[u8]) -> Option<(usize, TcpStream)> {
        let mut asked = [0; GREETING.len() + 16];
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(SILENCE)).ok()?;
        stream.set_write_timeout(Some(SILENCE)).ok()?;
        stream.read_exact(&mut asked).ok()?;
        let numbers = asked.strip_prefix(GREETING)?;
        let number =
            |at: usize| usize::try_from(u64::from_le_bytes(numbers[at..at + 8].try_into().ok()?)).ok();
        let (rank, world) = (number(0)?, number(8)?);
        if world != self.world || rank >= world {
            return None;
        }
        stream.write_all(bytes).ok()?;
        Some((rank, stream))
    }

    /// Asks the first process until it answers.
    fn fetch<const N: usize>(&self) -> Result<([u8; N], TcpStream)> {
        let begin = Instant::now();
        loop {
            match self.ask() {
                Ok(answer) => return Ok(answer),
                Err(error) if begin.elapsed() > PATIENCE => return Err(self.apart(&error.to_string())),
                // It has not begun to listen yet, or was busy with another.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn ask<const N: usize>(&self) -> std::io::Result<([u8; N], TcpStream)> {
        let place = (self.master.as_str(), self.port).to_socket_addrs()?.next();
        let place = place.ok_or_else(|| std::io::Error::from(ErrorKind::NotFound))?;
        let mut stream = TcpStream::connect_timeout(&place, SILENCE)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let (rank, world) = ((self.rank as u64).to_le_bytes(), (self.world as u64).to_le_bytes());
        stream.write_all(&[GREETING.as_slice(), &rank, &world].concat())?;
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes)?;
        Ok((bytes, stream))
    }

    fn apart(&self, problem: &str) -> Error {
        Error::Device(format!(
            "the {} processes of this run did not meet at {}:{}: {problem}\n  help: see that all were started, and that \
             MASTER_ADDR and MASTER_PORT are the same for all",
            self.world, self.master, self.port
        ))
    }
}

/// The machine of the first process: this one, if it has them all, or the first that Slurm lists.
fn alone_or_first(get: &impl Fn(&str) -> Option<String>, world: usize) -> Option<String> {
    let here = ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"];
    let alone = here.iter().any(|name| get(name).and_then(|text| text.parse().ok()) == Some(world));
    if alone {
        Some("127.0.0.1".to_owned())
    } else {
        get("SLURM_STEP_NODELIST").and_then(|list| first_host(&list))
    }
}

/// The first of Slurm's list of hosts: `gpu[07-09,12],cpu1` begins with `gpu07`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let number = match rest.strip_prefix('[') {
        Some(rest) => &rest[..rest.find([',', '-', ']'])?],
        None => "",
    };
    let host = format!("{prefix}{number}");
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn told(variables: &[(&str, &str)]) -> Result<Option<Ranks>> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        Ranks::from(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn each_starter_is_understood() {
        assert_eq!(told(&[]).expect("sound"), None);
        let torch = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "a"),
            ("MASTER_PORT", "7"),
        ];
        let expected = Ranks { rank: 5, world: 8, local: 1, master: "a".to_owned(), port: 8 };
        assert_eq!(told(&torch).expect("whole"), Some(expected));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let expected = Ranks { rank: 1, world: 2, local: 1, master: "127.0.0.1".to_owned(), port: PORT + 1 };
        assert_eq!(told(&mpi).expect("sound"), Some(expected));
        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ];
        let expected = Ranks { rank: 3, world: 4, local: 1, master: "gpu07".to_owned(), port: PORT + 1 };
        assert_eq!(told(&slurm).expect("sound"), Some(expected));
        // A batch script is not a step of srun's.
        assert_eq!(
            told(&[("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0"), ("SLURM_NTASKS", "8")]).expect("sound"),
            None
        );
    }

    #[test]
    fn impossible_numbers_are_named() {
        let base = [("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "a")];
        for (more, named) in [
            (vec![("RANK", "2")], "RANK is 2, expected less than WORLD_SIZE (2)"),
            (vec![("RANK", "one")], "RANK is one"),
            (vec![("RANK", "0"), ("MASTER_PORT", "65535")], "MASTER_PORT is 65535"),
            (vec![("RANK", "0"), ("MASTER_PORT", "x")], "MASTER_PORT is x"),
        ] {
            let error = told(&[base.as_slice(), &more].concat()).expect_err("refused");
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(named), "{error}");
        }
        let nowhere = told(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")]).expect_err("refused");
        assert!(nowhere.to_string().contains("MASTER_ADDR"), "{nowhere}");
    }

    #[test]
    fn the_first_host_of_a_list() {
        for (list, first) in
            [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12],cpu1", "gpu07"), ("a[3]", "a3"), ("b[1,5]", "b1")]
        {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host(""), None);
        assert_eq!(first_host("a[3"), None);
    }

    #[test]
    fn what_the_first_says_reaches_everyone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("sound");
        let port = listener.local_addr().expect("sound").port();
        let of = |rank| Ranks { rank, world: 4, local: rank, master: "127.0.0.1".to_owned(), port };
        std::thread::scope(|scope| {
            // Strangers come first: one that says nothing of ours, one of another run, one that leaves.
            let mut stranger = TcpStream::connect(("127.0.0.1", port)).expect("sound");
            stranger.write_all(&[7; GREETING.len() + 16]).expect("sound");
            let mut other = TcpStream::connect(("127.0.0.1", port)).expect("sound");
            other.write_all(&[GREETING.as_slice(), &[1; 16]].concat()).expect("sound");
            drop(TcpStream::connect(("127.0.0.1", port)).expect("sound"));
            let others: Vec<_> = [3, 1, 2].map(|rank| scope.spawn(move || of(rank).fetch::<128>())).into();
            let lines = of(0).give(&listener, &[9; 128]).expect("sound");
            assert_eq!(lines.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [1, 2, 3]);
            for other in others {
                assert_eq!(other.join().expect("sound").expect("sound").0, [9; 128]);
            }
        });
        let alone = Ranks { world: 1, ..of(0) };
        let (bytes, lines) = alone.share(|| Ok([5; 3])).expect("sound");
        assert!(bytes == [5; 3] && lines.is_empty());
    }
}
