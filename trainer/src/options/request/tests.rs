//! Presets, files and flags over one another; contradictions; what a resumed run may change.

use super::*;
use crate::data::TokenizerSource;
use crate::device::Precision;
use crate::options::keys::Kind;

fn request(preset: Option<&str>, flags: &[(&'static str, &str)]) -> Request {
    Request { preset: preset.map(str::to_owned), flags: Flags::of(flags), ..Request::default() }
}

fn refused(text: &str) -> String {
    parse(text, "my.toml").err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn flags_depart_from_the_file_and_the_file_from_the_preset() {
    let folder = std::env::temp_dir().join(format!("lectern-options-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("my.toml");
    std::fs::write(&path, "preset = \"nano-cpu\"\nbatch = 3\nclip = 2\ndata = \"a.txt\"\n").expect("a file");
    let asked =
        Request { config: Some(path.clone()), ..request(None, &[("batch", "5"), ("qkv_bias", "true")]) };
    let recipe = asked.resolve().expect("a valid request");
    assert_eq!(recipe.options.batch, 5);
    assert_eq!(recipe.options.clip, 2.0);
    assert_eq!(recipe.options.width, 128);
    assert!(recipe.options.qkv_bias);
    assert_eq!(recipe.data, [PathBuf::from("a.txt")]);

    std::fs::write(&path, recipe.to_toml().expect("plain data")).expect("a file");
    assert_eq!(Recipe::open(&path).expect("its own config"), recipe);
    std::fs::remove_dir_all(&folder).expect("a folder of ours");
}

#[test]
fn every_preset_survives_its_own_config_file() {
    for preset in presets::PRESETS {
        let recipe = Recipe {
            options: preset.options().settled(),
            data: vec!["t".into()],
            data_weight: vec![0.5],
            upcycle: Some("dense".into()),
            from: None,
        };
        let given = parse(&recipe.to_toml().expect("plain data"), "test").expect("our own keys");
        let mut table = given.values;
        table.insert("preset".into(), Value::String(preset.name.into()));
        assert_eq!(options(table).expect("every key"), recipe.options);
        assert_eq!((given.data, given.data_weight), (recipe.data, recipe.data_weight));
    }
}

#[test]
fn a_run_goes_on_wherever_it_is_told_to() {
    let recorded =
        request(Some("nano-cpu"), &[("device", "cuda"), ("precision", "f32")]).resolve().expect("valid");
    assert_eq!(recorded.options.device, Device::Cuda);
    let file = recorded.to_toml().expect("plain data");
    assert!(!file.contains("device"), "{file}");
    assert!(file.contains("precision = \"f32\""), "{file}");
    // An older run wrote its device down, in its config and in its checkpoints.
    let run = Path::new("runs/one");
    let resumed = request(None, &[]).resume(&recorded, run).expect("no difference");
    assert_eq!(resumed.options.device, Device::Auto);
    assert_eq!(resumed.options.precision, Some(Precision::F32));
    let mut older = resumed.fixed().expect("plain data");
    older.insert("device".to_owned(), "cuda".to_owned());
    refuse_differences(&resumed, &older, run).expect("where it ran is no difference");
}

#[test]
fn the_cpu_computes_in_f32() {
    let flags = [("device", "cpu"), ("precision", "bf16")];
    let error = request(Some("nano-cpu"), &flags).resolve().expect_err("no bf16 there");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("precision is bf16, expected f32 with device cpu"), "{error}");
    assert!(request(Some("nano-cpu"), &[("device", "cpu"), ("precision", "f32")]).resolve().is_ok());
}

#[test]
fn mistakes_in_a_file_are_named() {
    assert!(refused("widht = 3").contains("widht is not a key, expected `width`"));
    assert!(refused("width = 0").contains("my.toml: width is 0, expected a whole number from 1 to 65536"));
    assert!(refused("width = \"wide\"").contains("width is \"wide\""));
    assert!(refused("tied = 1").contains("true or false"));
    assert!(refused("dropout = nan").contains("dropout is nan"));
    assert!(refused("width = ").contains("line 1"));
    assert!(refused("width = 1\nwidth = 2").contains("line 2"));
    assert!(refused("data = 3").contains("data is 3"));
    assert!(refused("data_weight = 3").contains("a list of numbers"));
    assert!(refused("data_weight = [1, \"x\"]").contains("a list of numbers"));
    assert!(refused("tokenizer = \"\"").contains("characters, bytes, or a path"));
    assert!(refused("[model]\nwidth = 3").contains("model is not a key"));
    assert_eq!(refused("width = 64"), "");
}

#[test]
fn contradictions_are_refused_by_name() {
    for (flags, name) in [
        (&[("rng", "torch"), ("dropout", "0.1")][..], "dropout"),
        (&[("heads", "3")], "width"),
        (&[("width", "60000"), ("heads", "3")], "head_size"),
        (&[("kv_heads", "3")], "kv_heads"),
        (&[("experts", "4"), ("router_weight", "renormalised")], "router_weight"),
        (&[("experts", "4"), ("active_experts", "5")], "experts.active"),
        (&[("norm", "rms-norm")], "norm_bias"),
        (&[("rng", "torch"), ("router_jitter", "0.1")], "router_jitter"),
        (&[("rng", "torch"), ("router_noise", "true")], "router_noise"),
        (&[("schedule", "cosine"), ("final_learning_rate", "1")], "final_learning_rate"),
        (&[("batch", "1048576"), ("block", "1048576")], "batch x accumulate x block"),
    ] {
        let error = request(Some("gpt-zero"), flags).resolve().expect_err(name);
        assert!(error.exit_code() == 4 && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_resumed_run_may_change_what_changes_no_result() {
    let options = presets::find("nano-cpu").expect("a preset").settled();
    let data = vec!["text".into()];
    let recorded = Recipe { options, data, data_weight: vec![], upcycle: None, from: None };
    let run = Path::new("runs/one");
    let allowed = [
        ("steps", "9"),
        ("device", "cuda"),
        ("precision", "bf16"),
        ("threads", "3"),
        ("save_every", "7"),
        ("keep", "4"),
        ("recompute", "layers"),
        ("progress", "off"),
    ];
    let resumed = request(None, &allowed).resume(&recorded, run).expect("changeable");
    assert_eq!((resumed.options.steps, resumed.options.keep), (9, 4));
    assert_eq!(resumed.options.decay_steps, Some(2000));
    assert_eq!(resumed.data, recorded.data);
    assert!(request(Some("nano-cpu"), &[("batch", "12")]).resume(&recorded, run).is_ok());

    let table = recorded.options.table().expect("plain data");
    for key in KEYS.iter().filter(|key| !CHANGEABLE.contains(&key.name)) {
        let other = match key.name {
            "heads" => "2".to_owned(),
            "context" => "100".to_owned(),
            "rng" => "torch".to_owned(),
            "rotary_base" => "500".to_owned(),
            _ => match key.kind {
                Kind::Count(least, _) => (least + 1).to_string(),
                Kind::Switch => (!table[key.name].as_bool().expect("a switch")).to_string(),
                Kind::Choice(words) => {
                    let other =
                        words.iter().find(|word| Some(**word) != table.get(key.name).and_then(Value::as_str));
                    other.map(|word| (*word).to_owned()).expect("another word")
                }
                _ => "0.00042".to_owned(),
            },
        };
        let flags =
            if key.name == "width" { vec![("width", "64")] } else { vec![(key.name, other.as_str())] };
        let error = request(None, &flags).resume(&recorded, run).expect_err(key.name);
        assert!(error.to_string().contains(&format!("runs/one: {} is", key.name)), "{error}");
    }
    let weighted = Request { data_weight: vec![2.0], ..Request::default() };
    let error = weighted.resume(&recorded, run).expect_err("another mixture of the data");
    assert!(error.to_string().contains("data_weight is 2, expected absent"), "{error}");
    let error = request(Some("nano"), &[]).resume(&recorded, run).expect_err("another preset");
    assert!(error.to_string().contains("preset is nano, expected nano-cpu"), "{error}");
}

#[test]
fn where_a_tokenizer_lies_may_change_and_what_kind_it_is_may_not() {
    let options = presets::find("nano-cpu").expect("a preset").settled();
    let options = Options { tokenizer: TokenizerSource::File("a/tokenizer.json".into()), ..options };
    let data = vec!["text".into()];
    let recorded = Recipe { options, data, data_weight: vec![], upcycle: None, from: None };
    let text = recorded.to_toml().expect("plain data");
    assert!(text.contains("tokenizer = \"a/tokenizer.json\""), "{text}");
    let run = Path::new("runs/one");
    for (asked, accepted) in [("b/tokenizer.json", true), ("bytes", false)] {
        let resumed = request(None, &[("tokenizer", asked)]).resume(&recorded, run);
        assert_eq!(resumed.is_ok(), accepted, "{asked}");
    }
}
