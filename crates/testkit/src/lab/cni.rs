//! Executing CNI plugins as a container runtime does.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::find::bin_dir;
use crate::{Cmd, Ran, Space};

/// A conflist, and where the plugins are.
#[derive(Clone, Debug)]
pub struct Chain {
    list: Value,
    dirs: Vec<PathBuf>,
}

/// One container's attachment to the network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Container id.
    pub id: String,
    /// Path of the network namespace as the node sees it; none when the container is gone.
    pub netns: Option<String>,
    /// Name of the device inside.
    pub ifname: String,
}

impl Chain {
    /// Takes a conflist; plugins are looked up beside our programs, then where Debian puts its own.
    #[must_use]
    pub fn new(list: Value) -> Self {
        Self { list, dirs: vec![bin_dir(), PathBuf::from("/usr/lib/cni")] }
    }

    /// Reads a conflist; plugins are looked up beside our programs, then where Debian puts its own.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn from_conflist(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let list = serde_json::from_str(&text);
        list.map(Self::new).with_context(|| format!("failed to parse {}", path.display()))
    }

    /// Runs ADD through the chain, each plugin given the result of the one before; the final result.
    ///
    /// # Errors
    /// At the first plugin that fails, with its answer.
    pub fn add(&self, node: &Space, to: &Attachment) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            let ran = self.call(node, "ADD", to, &self.config(plugin, &result))?;
            result = serde_json::from_str(&ran.stdout)
                .with_context(|| format!("ADD did not answer in JSON: {ran}"))?;
        }
        Ok(result)
    }

    /// Runs CHECK through the chain with the final result of ADD.
    ///
    /// # Errors
    /// At the first plugin that fails, with its answer.
    pub fn check(&self, node: &Space, to: &Attachment, result: &Value) -> Result<()> {
        self.plugins().into_iter().try_for_each(|plugin| {
            let ran = self.call(node, "CHECK", to, &self.config(plugin, result))?;
            if ran.stdout.is_empty() { Ok(()) } else { bail!("CHECK wrote to its output: {ran}") }
        })
    }

    /// Runs DEL through the chain, backwards.
    ///
    /// # Errors
    /// At the first plugin that fails, with its answer.
    pub fn del(&self, node: &Space, to: &Attachment, result: &Value) -> Result<()> {
        self.plugins().into_iter().rev().try_for_each(|plugin| {
            let ran = self.call(node, "DEL", to, &self.config(plugin, result))?;
            if ran.stdout.is_empty() { Ok(()) } else { bail!("DEL wrote to its output: {ran}") }
        })
    }

    fn plugins(&self) -> Vec<&Value> {
        self.list["plugins"].as_array().into_iter().flatten().collect()
    }

    /// The newest version that the list offers, as a runtime of today chooses it.
    fn version(&self) -> Value {
        let offered =
            self.list["cniVersions"].as_array().into_iter().flatten().chain([&self.list["cniVersion"]]);
        let number = |text: &Value| -> Vec<u32> {
            text.as_str()
                .into_iter()
                .flat_map(|text| text.split('.'))
                .filter_map(|part| part.parse().ok())
                .collect()
        };
        offered.max_by_key(|version| number(version)).cloned().unwrap_or_default()
    }

    /// One plugin's stdin: its entry with what the runtime adds.
    fn config(&self, plugin: &Value, previous: &Value) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.list["name"].clone();
        config["cniVersion"] = self.version();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        if !plugin["capabilities"].is_null() {
            config["runtimeConfig"] = json!({});
        }
        config
    }

    fn call(&self, node: &Space, verb: &str, to: &Attachment, config: &Value) -> Result<Ran> {
        let name = config["type"].as_str().context("a plugin in the conflist has no type")?;
        let program = self.dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        let program = program.with_context(|| format!("plugin {name} is in none of {:?}", self.dirs))?;
        let path: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let cmd = Cmd::new("")
            .arg(program.display().to_string())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &to.id)
            .env("CNI_NETNS", to.netns.as_deref().unwrap_or_default())
            .env("CNI_IFNAME", &to.ifname)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", to.id))
            .env("CNI_PATH", path.join(":"))
            .stdin(config.to_string());
        node.wrap(cmd).ok().with_context(|| format!("{verb} of {} failed", to.id))
    }
}
