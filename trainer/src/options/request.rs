//! How a run is asked for: preset, config file and flags laid over one another, and what a resumed run may not change.

use super::keys::{CHANGEABLE, KEYS, Key};
use super::shape::refuse_another_shape;
use super::{Device, Flags, Options, nearest};
use crate::presets;
use formats::checkpoint::source;
use formats::config::Config;
use formats::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Longest config file; ours are below 2 KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Options and the text they are for: what `config.toml` holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// How to train.
    pub options: Options,
    /// On what: text files and token shards.
    pub data: Vec<PathBuf>,
    /// A weight for each of them, or none.
    pub data_weight: Vec<f64>,
    /// The dense model that a mixture starts from, if from one.
    pub upcycle: Option<PathBuf>,
    /// The model that is trained further, if one is.
    pub from: Option<PathBuf>,
}

impl Recipe {
    /// Reads a `config.toml` of ours.
    pub fn open(path: &Path) -> Result<Recipe> {
        Request { config: Some(path.to_path_buf()), ..Request::default() }.resolve()
    }

    /// As a config file that [`Recipe::open`] and `--config` read. The device is left out: a run may go on elsewhere.
    pub fn to_toml(&self) -> Result<String> {
        let mut table = self.options.table()?;
        table.remove("device");
        let utf8 = |path: &PathBuf| {
            let text = path.to_str().ok_or_else(|| {
                Error::Usage(format!(
                    "config.toml cannot hold the path {}, which is not UTF-8\n  help: give it another name",
                    path.display()
                ))
            });
            text.map(str::to_owned)
        };
        let data = self.data.iter().map(|path| utf8(path).map(Value::String));
        table.insert("data".to_owned(), Value::Array(data.collect::<Result<_>>()?));
        if !self.data_weight.is_empty() {
            let weights = self.data_weight.iter().map(|&weight| Value::Float(weight));
            table.insert("data_weight".to_owned(), Value::Array(weights.collect()));
        }
        if let Some(path) = &self.upcycle {
            table.insert("upcycle".to_owned(), Value::String(utf8(path)?));
        }
        if let Some(path) = &self.from {
            table.insert("from".to_owned(), Value::String(utf8(path)?));
        }
        toml::to_string(&table).map_err(|error| Error::Internal(format!("config as TOML: {error}")))
    }

    /// What may not change when the run is resumed: [`Options::fixed`], and in which shares the data are read.
    pub fn fixed(&self) -> Result<BTreeMap<String, String>> {
        let mut fixed = self.options.fixed()?;
        if !self.data_weight.is_empty() {
            let weights: Vec<String> = self.data_weight.iter().map(f64::to_string).collect();
            fixed.insert("data_weight".to_owned(), weights.join(" "));
        }
        Ok(fixed)
    }
}

/// What was asked for, before it is resolved.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `--preset`.
    pub preset: Option<String>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--data`.
    pub data: Vec<PathBuf>,
    /// `--data-weight`.
    pub data_weight: Vec<f64>,
    /// `--upcycle`.
    pub upcycle: Option<PathBuf>,
    /// `--from`.
    pub from: Option<PathBuf>,
    /// Every other flag.
    pub flags: Flags,
}

/// A config file's keys, checked one by one.
#[derive(Default)]
struct Given {
    preset: Option<String>,
    data: Vec<PathBuf>,
    data_weight: Vec<f64>,
    upcycle: Option<PathBuf>,
    from: Option<PathBuf>,
    values: Table,
}

impl Request {
    /// Whether it says what to train, and not only where.
    pub fn names_a_model(&self) -> bool {
        self.preset.is_some() || self.config.is_some() || self.from.is_some()
    }

    /// Preset, then file, then flags.
    pub fn resolve(&self) -> Result<Recipe> {
        self.resolve_given(self.given()?, |preset, _| preset.table())
    }

    /// The same for a run that begins: what the model that it trains further is, if there is one, stands for itself.
    /// `read` gives the description of the model in a directory.
    pub fn begin(&self, read: impl FnOnce(&Path) -> Result<Config>) -> Result<Recipe> {
        let given = self.given()?;
        let Some(from) = given.from.clone() else { return self.resolve() };
        let config = read(&from)?;
        self.resolve_given(given, |preset, given| {
            let shaped = preset.shaped(&config, given)?.table()?;
            refuse_another_shape(&config, &shaped, given, &from, &self.origin())?;
            Ok(shaped)
        })
    }

    fn resolve_given(
        &self,
        given: Given,
        base: impl FnOnce(Options, &Table) -> Result<Table>,
    ) -> Result<Recipe> {
        let preset = given.preset.as_deref().unwrap_or(presets::PRESETS[0].name);
        let mut table = base(presets::find(preset)?, &given.values)?;
        table.extend(given.values);
        let options = options(table)?;
        options.validate(&self.origin())?;
        let Given { data, data_weight, upcycle, from, .. } = given;
        Ok(Recipe { options, data, data_weight, upcycle, from })
    }

    /// What the run that `recorded` began is asked to be now. `run` names its directory.
    ///
    /// Values that are not asked for stay as recorded; a preset is asked for by its name, not value by value.
    pub fn resume(&self, recorded: &Recipe, run: &Path) -> Result<Recipe> {
        let given = self.given()?;
        // The recorded device is that of another day, and perhaps of another machine.
        let elsewhere = Options { device: Device::Auto, ..recorded.options.clone() };
        let mut table = elsewhere.table()?;
        table.extend(given.values);
        if let Some(preset) = given.preset {
            table.insert("preset".to_owned(), Value::String(preset));
        }
        let options = options(table)?;
        options.validate(&self.origin())?;
        let recipe = Recipe {
            options,
            data: if given.data.is_empty() { recorded.data.clone() } else { given.data },
            data_weight: if given.data_weight.is_empty() {
                recorded.data_weight.clone()
            } else {
                given.data_weight
            },
            upcycle: given.upcycle.or_else(|| recorded.upcycle.clone()),
            from: given.from.or_else(|| recorded.from.clone()),
        };
        refuse_differences(&recipe, &recorded.fixed()?, run)?;
        Ok(recipe)
    }

    /// File and flags laid over one another.
    fn given(&self) -> Result<Given> {
        let mut given = match &self.config {
            Some(path) => read(path)?,
            None => Given::default(),
        };
        if let Some(preset) = &self.preset {
            given.preset = Some(preset.clone());
        }
        if !self.data.is_empty() {
            given.data = self.data.clone();
            // Weights are of the files they were given with.
            given.data_weight.clear();
        }
        if !self.data_weight.is_empty() {
            given.data_weight = self.data_weight.clone();
        }
        if self.upcycle.is_some() {
            given.upcycle = self.upcycle.clone();
        }
        if self.from.is_some() {
            given.from = self.from.clone();
        }
        if given.from.is_some() && given.upcycle.is_some() {
            return Err(Error::Usage(
                "--from and --upcycle each say what the weights begin as\n  help: name one of them"
                    .to_owned(),
            ));
        }
        for (name, value) in self.flags.values()? {
            given.values.insert(name.to_owned(), value);
        }
        Ok(given)
    }

    fn origin(&self) -> String {
        self.config.as_ref().map_or_else(|| "command line".to_owned(), |path| path.display().to_string())
    }
}

/// Refuses a recipe that differs from what a run was `started` with, naming each difference.
pub fn refuse_differences(asked: &Recipe, started: &BTreeMap<String, String>, run: &Path) -> Result<()> {
    let asked = asked.fixed()?;
    let absent = "absent".to_owned();
    let names: Vec<&String> = started
        .keys()
        .chain(asked.keys().filter(|name| !started.contains_key(*name)))
        // Older runs wrote down more of what may change.
        .filter(|name| !CHANGEABLE.contains(&name.as_str()))
        .filter(|name| started.get(*name) != asked.get(*name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let list = |values: &BTreeMap<String, String>| {
        names.iter().map(|name| values.get(*name).unwrap_or(&absent).clone()).collect::<Vec<_>>().join(", ")
    };
    Err(Error::config(
        run.display().to_string(),
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "),
        list(&asked),
        format!("{} as the run was started; other runs need another --out", list(started)),
    ))
}

fn options(table: Table) -> Result<Options> {
    table.try_into().map_err(|error| Error::Internal(format!("checked options: {error}")))
}

/// Reads a config file.
fn read(path: &Path) -> Result<Given> {
    let origin = path.display().to_string();
    parse(&source::read_text(path, MAX_CONFIG_BYTES)?, &origin)
}

fn parse(text: &str, origin: &str) -> Result<Given> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Error::config(origin, format!("line {line}"), error.message(), "TOML, lines of `key = value`")
    })?;
    let mut given = Given::default();
    for (name, value) in &table {
        match (name.as_str(), Key::find(name)) {
            ("preset", _) => match value.as_str() {
                Some(preset) => given.preset = Some(preset.to_owned()),
                None => return Err(Error::config(origin, name, value, "the name of a preset")),
            },
            ("data", _) => {
                let paths: Option<Vec<PathBuf>> = match value {
                    Value::String(path) => Some(vec![path.into()]),
                    Value::Array(paths) => {
                        paths.iter().map(|path| path.as_str().map(PathBuf::from)).collect()
                    }
                    _ => None,
                };
                given.data = paths
                    .ok_or_else(|| Error::config(origin, name, value, "a list of text files and shards"))?;
            }
            ("data_weight", _) => {
                let weights: Option<Vec<f64>> = value.as_array().and_then(|weights| {
                    let number = |value: &Value| value.as_float().or(value.as_integer().map(|n| n as f64));
                    weights.iter().map(number).collect()
                });
                given.data_weight = weights.ok_or_else(|| {
                    Error::config(origin, name, value, "a list of numbers, one for each of data")
                })?;
            }
            ("upcycle" | "from", _) => match value.as_str() {
                Some(path) if name == "from" => given.from = Some(path.into()),
                Some(path) => given.upcycle = Some(path.into()),
                None => return Err(Error::config(origin, name, value, "a model directory")),
            },
            (_, Some(key)) => {
                let (key, value) = key.meant(value);
                given.values.insert(key.name.to_owned(), key.check(origin, name, &value)?);
            }
            (_, None) => {
                let others = ["preset", "data", "data_weight", "upcycle", "from"];
                let known = KEYS.iter().map(|key| key.name).chain(others);
                let hint = nearest(name, known)
                    .map_or("one that `trainer train --help` lists".to_owned(), |near| format!("`{near}`"));
                return Err(Error::config(origin, name, "not a key", hint));
            }
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests;
