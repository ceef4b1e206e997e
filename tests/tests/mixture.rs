//! Mixtures of experts as their users meet them: only chosen experts are computed and read, hostile files are
//! refused, and what is learned is spread over the experts.

use formats::checkpoint::Dtype;
use formats::config::{Experts, RouterScore, RouterWeight};
use formats::layout::{FeedForward, Layout};
use formats::{Config, Error};
use runtime::model::{Model, ModelOptions};
use runtime::session::{CacheType, Session, SessionOptions};
use tests::Chance;
use tests::models::{self, Written};
use tests::programs::Program;

fn mixture(count: usize, active: usize) -> Config {
    let experts = Experts {
        count,
        active,
        width: 24,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: false,
        noise: false,
    };
    Config { context: 64, experts: Some(experts), ..models::small() }
}

fn session(written: &Written, threads: usize) -> Session {
    let options = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    let model = Model::open_with(&written.path, &options).expect("a model");
    model
        .session_with(&SessionOptions { cache: CacheType::F32, ..SessionOptions::default() })
        .expect("a session")
}

#[test]
fn exactly_the_chosen_experts_are_computed() {
    for (count, active) in [(4, 1), (8, 2), (128, 3)] {
        let config = mixture(count, active);
        let written = models::write(&config, &models::random_weights(&config, 1), Dtype::F16);
        let mut session = session(&written, 2);
        let ids = Chance::new(3).ids(40, config.vocabulary);
        session.feed(&ids[..30]).expect("a prompt");
        for id in &ids[30..] {
            session.feed(&[*id]).expect("a token");
        }
        // Of the prompt, the last layer's feed-forward half computes the last row alone.
        let rows = (config.layers - 1) * 30 + 1 + config.layers * 10;
        let stats = session.expert_stats();
        assert_eq!(stats.expert_rows, (rows * active) as u64, "{count} experts");
        let counted: u64 = stats.counts.iter().flatten().sum();
        assert_eq!(counted, (rows * active) as u64);
    }
}

#[test]
fn routers_of_no_numbers_and_wrong_counts_are_no_panic() {
    let config = mixture(4, 2);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        let layout = Layout::new(&config);
        let mut weights = models::random_weights(&config, 2);
        for layer in &layout.layers {
            let FeedForward::Experts(bank) = &layer.feed_forward else { panic!("a mixture") };
            weights[layout.parameter(bank.router.weight).range()].fill(value);
        }
        let written = models::write_unchecked(&config, &weights);
        for (threads, prompt) in [(1, 1), (2, 30)] {
            let ids = Chance::new(1).ids(prompt, config.vocabulary);
            // Whatever comes of it, it comes back.
            let _ = session(&written, threads).feed(&ids).map(<[f32]>::len);
        }
    }
    let written = models::write(&config, &models::random_weights(&config, 2), Dtype::F32);
    let path = written.path.join("config.json");
    let text = std::fs::read_to_string(&path).expect("a config");
    for (from, to, code) in [
        ("\"count\": 4", "\"count\": 5", 3),
        ("\"count\": 4", "\"count\": 3", 3),
        ("\"count\": 4", "\"count\": 1", 4),
        ("\"active\": 2", "\"active\": 5", 4),
        ("\"active\": 2", "\"active\": 0", 4),
        ("\"width\": 24", "\"width\": 25", 3),
        ("\"count\": 4", "\"count\": 18446744073709551615", 4),
        ("\"every\": 1", "\"every\": 0", 4),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("can be written");
        let error = Model::open(&written.path).map(|_| ()).expect_err(to);
        assert_eq!(error.exit_code(), code, "{to}: {error}");
    }
}

#[test]
fn neither_a_budget_of_half_the_experts_nor_holding_them_changes_a_token() {
    let config = Config { width: 48, head_size: 16, feed_forward_bias: false, ..mixture(16, 2) };
    let written = models::write(&config, &models::random_weights(&config, 5), Dtype::F32);
    let layout = Layout::new(&config);
    let FeedForward::Experts(bank) = &layout.layers[0].feed_forward else { panic!("a mixture") };
    let expert =
        4 * (layout.parameter(bank.up(0).weight).len() + layout.parameter(bank.down(0).weight).len());
    let all = config.layers * 16 * expert;
    let ids = Chance::new(9).ids(60, config.vocabulary);
    let text = |expert_budget: Option<u64>, hold: bool| {
        let options = ModelOptions { threads: Some(2), expert_budget, hold, ..ModelOptions::default() };
        let model = Model::open_with(&written.path, &options).expect("a model");
        let mut session = model.session().expect("a session");
        let mut rows = session.feed(&ids[..20]).expect("a prompt").to_vec();
        for id in &ids[20..] {
            rows.extend_from_slice(session.feed(&[*id]).expect("a token"));
        }
        (rows, model.residency())
    };
    let (free, unlimited) = text(None, false);
    assert_eq!(unlimited, None, "without a budget nothing is counted");
    for budget in [all / 2, 3 * expert, 1] {
        let (bound, residency) = text(Some(budget as u64), false);
        assert!(bound == free, "a budget of {budget} bytes changes the text");
        let residency = residency.expect("a budget is counted");
        // What one step uses of one layer stays until it has been used.
        let least = 2 * 16 * expert as u64;
        assert!(residency.bytes <= (budget as u64).max(least), "{residency:?} of {budget}");
        assert!(residency.misses > 0 && residency.read == residency.misses * expert as u64, "{residency:?}");
        assert!(residency.hits + residency.misses > 0);
    }
    assert!(text(None, true).0 == free, "weights that are held instead of mapped change the text");
    let both = ModelOptions { expert_budget: Some(1), hold: true, ..ModelOptions::default() };
    let error =
        Model::open_with(&written.path, &both).map(|_| ()).expect_err("what is held is not given back");
    assert_eq!(error.exit_code(), 2, "{error}");
}

/// A model whose experts are a MiB each and too many to be packed.
fn heavy() -> (Config, u64) {
    let config = Config {
        vocabulary: 11,
        context: 16,
        width: 256,
        head_size: 64,
        heads: 4,
        kv_heads: 4,
        feed_forward_bias: false,
        ..mixture(16, 2)
    };
    let experts = Experts { width: 512, ..config.experts.expect("experts") };
    let config = Config { experts: Some(experts), ..config };
    let layout = Layout::new(&config);
    let FeedForward::Experts(bank) = &layout.layers[0].feed_forward else { panic!("a mixture") };
    let expert =
        4 * (layout.parameter(bank.up(0).weight).len() + layout.parameter(bank.down(0).weight).len());
    (config, expert as u64)
}

/// Bytes of a mapped file that this process holds.
fn resident(path: &std::path::Path) -> Option<u64> {
    let path = path.canonicalize().ok()?;
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    // Advice splits a map: each part stands for itself, under the same path.
    let (mut total, mut inside, mut found) = (0, false, false);
    for line in maps.lines() {
        if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            inside = line.ends_with(path.to_str()?);
            found |= inside;
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| inside) {
            total += size.split_whitespace().next()?.parse::<u64>().ok()? << 10;
        }
    }
    found.then_some(total)
}

#[test]
fn one_token_makes_only_its_experts_resident() {
    let (config, expert) = heavy();
    let written = models::write(&config, &models::random_weights(&config, 8), Dtype::F32);
    // What was just written lies in the system's cache in large pieces, which newer kernels map whole.
    let file = written.path.join("model.safetensors");
    let mut forget = std::process::Command::new("dd");
    forget.arg(format!("if={}", file.display())).args(["iflag=nocache", "count=0"]);
    if !forget.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: the system's cache cannot be emptied of a file here");
        return;
    }
    let mut session = session(&written, 2);
    session.feed(&[3]).expect("a token");
    let Some(found) = resident(&file) else {
        eprintln!("skipped: this system does not tell what is resident of a map");
        return;
    };
    let chosen: u64 =
        session.expert_stats().counts.iter().flatten().filter(|count| **count > 0).count() as u64;
    assert_eq!(chosen, 2 * config.layers as u64);
    let layout = Layout::new(&config);
    let dense = 4 * layout.parameters() as u64 - config.layers as u64 * 16 * expert;
    let allowed = dense + chosen * (expert + (256 << 10));
    assert!(found <= allowed, "{found} bytes are resident, {allowed} allowed");
    assert!(
        found >= chosen * expert,
        "{found} bytes are resident of {chosen} experts of {expert}: not measured"
    );
}

#[test]
fn under_a_limit_of_memory_the_text_is_the_same() {
    let (config, expert) = heavy();
    let written = models::write(&config, &models::random_weights(&config, 8), Dtype::F32);
    let budget = (config.layers as u64 * 16 * expert / 2).to_string();
    let path = written.path.to_str().expect("a path");
    let arguments =
        ["generate", "--model", path, "--ids", "1,2,3", "-n", "40", "--seed", "4", "--format", "ids"];
    let free = Program::Runtime.run(&arguments).expect(0);
    let bound = [&arguments[..], &["--expert-budget", &budget]].concat();
    assert_eq!(Program::Runtime.run(&bound).expect(0).stdout, free.stdout, "a budget changes the text");

    // Half of the model's file, and what a process needs besides.
    let group = std::path::PathBuf::from(format!("/sys/fs/cgroup/lectern-{}", std::process::id()));
    let limit = 4 * Layout::new(&config).parameters() as u64 / 2 + (24 << 20);
    let made = std::fs::create_dir(&group)
        .and_then(|()| std::fs::write(group.join("memory.max"), limit.to_string()))
        .and_then(|()| std::fs::write(group.join("memory.swap.max"), "0").or(Ok(())));
    if let Err(error) = made {
        let _ = std::fs::remove_dir(&group);
        eprintln!("skipped: no control group can be made here: {error}");
        return;
    }
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.display());
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(script).arg(Program::Runtime.path()).args(&bound);
    let output = command.output().expect("a shell");
    let _ = std::fs::remove_dir(&group);
    let told = String::from_utf8_lossy(&output.stderr);
    if told.contains("cgroup.procs") {
        eprintln!("skipped: no process can be put into a control group here: {told}");
        return;
    }
    assert!(output.status.success(), "{told}");
    assert_eq!(output.stdout, free.stdout, "a limit of memory changes the text");
}

#[test]
fn an_error_of_ours_is_an_error() {
    // The comparers of this file rest on feeds that fail being told apart from those that do not.
    let config = mixture(4, 2);
    let written = models::write(&config, &models::random_weights(&config, 2), Dtype::F32);
    assert!(matches!(session(&written, 1).feed(&[]), Err(Error::Usage(_))));
}
