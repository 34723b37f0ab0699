//! JavaScript's side: one [`Session`] whose methods are those of `Engine` in `types.ts`. Meant for a worker,
//! since reading a text or training keeps its thread busy.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::Device;
use seqzoo::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use wasm_bindgen::prelude::*;

use crate::{BenchConfig, Kind, Model, ModelInfo, Trainer};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(message: &str);
}

#[allow(unsafe_code, reason = "a function that only the linker can make")]
mod constructors {
    unsafe extern "C" {
        fn __wasm_call_ctors();
    }

    /// Runs what `inventory` collected before `main` would run. Where no code of the module does this, the linker
    /// makes every exported function do it, each time it is called: a launch on WebGPU took milliseconds more.
    pub(super) fn run() {
        // SAFETY: the linker makes this function; it is called once, before anything else.
        unsafe { __wasm_call_ctors() }
    }
}

/// Puts the message of a panic where it can be read: a module that panicked must be loaded anew.
#[wasm_bindgen(start)]
pub fn start() {
    constructors::run();
    std::panic::set_hook(Box::new(|info| console_error(&format!("seqzoo: internal error: {info}"))));
}

type Answer<T = JsValue> = std::result::Result<T, JsError>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EngineInfo {
    backend: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    threads: usize,
    version: &'static str,
}

#[derive(Serialize)]
struct Opened {
    handle: u32,
    info: ModelInfo,
}

/// What a handle stands for; taken out while an asynchronous call works on it.
enum Held {
    Model(Box<Model>),
    Trainer(Box<Trainer>),
    Busy,
}

/// The engine on one backend, with all models and trainers that are open.
#[wasm_bindgen]
pub struct Session {
    device: Device,
    backend: &'static str,
    held: RefCell<BTreeMap<u32, Held>>,
    next: RefCell<u32>,
}

#[wasm_bindgen]
impl Session {
    /// Opens a backend, `cpu` or `webgpu`; rejects with the reason where it is absent.
    pub async fn open(backend: String) -> Answer<Session> {
        let (device, backend) = match backend.as_str() {
            "cpu" => (Device::flex(), "cpu"),
            #[cfg(feature = "webgpu")]
            "webgpu" => {
                let opened = Device::wgpu_options().init_async().await;
                (opened.map_err(|e| JsError::new(&format!("WebGPU is not available: {e}")))?, "webgpu")
            }
            other => return Err(JsError::new(&format!("unknown backend `{other}`: `cpu` or `webgpu`"))),
        };
        Ok(Self { device, backend, held: RefCell::default(), next: RefCell::new(1) })
    }

    /// `EngineInfo`
    pub fn info(&self) -> Answer {
        let version = env!("CARGO_PKG_VERSION");
        answer(Ok(EngineInfo { backend: self.backend, adapter: None, threads: 1, version }))
    }

    /// `ArchInfo[]`
    pub fn architectures(&self) -> Answer {
        answer(crate::architectures())
    }

    /// `ArchInfo`
    pub fn describe(&self, config: &str) -> Answer {
        answer(crate::describe(config))
    }

    /// `{ handle, info }`
    #[wasm_bindgen(js_name = openPreset)]
    pub fn open_preset(&self, config: &str, seed: u32) -> Answer {
        answer(Model::preset(config, seed.into()).and_then(|model| self.keep(model)))
    }

    /// `{ handle, info }`
    #[wasm_bindgen(js_name = openWeights)]
    pub fn open_weights(&self, bytes: &[u8]) -> Answer {
        answer(Model::from_weights(bytes).and_then(|model| self.keep(model)))
    }

    /// Frees a model or a trainer.
    pub fn close(&self, handle: u32) {
        self.held.borrow_mut().remove(&handle);
    }

    /// `Trace`
    pub fn read(&self, handle: u32, text: &str) -> Answer {
        answer(self.model(handle, |model| model.read(text)))
    }

    /// `StateSlot[]`
    pub fn state(&self, handle: u32, layer: usize, token: usize) -> Answer {
        answer(self.model(handle, |model| model.state(layer, token)))
    }

    /// `StateSlot[][]`
    pub fn states(&self, handle: u32, layer: usize) -> Answer {
        answer(self.model(handle, |model| model.states(layer)))
    }

    /// `Explanation`
    #[allow(clippy::too_many_arguments, reason = "the arguments of `explain` in types.ts")]
    pub fn explain(
        &self,
        handle: u32,
        layer: usize,
        kind: &str,
        head: usize,
        row: usize,
        column: usize,
        token: Option<usize>,
    ) -> Answer {
        let kind = serde_json::from_value::<Kind>(Value::String(kind.into()));
        let kind = kind.map_err(|e| JsError::new(&format!("kind: {e}")))?;
        answer(self.model(handle, |model| model.explain(layer, kind, [head, row, column], token)))
    }

    /// The text that follows a prompt.
    pub fn generate(
        &self,
        handle: u32,
        prompt: &str,
        tokens: usize,
        seed: u32,
        temperature: f64,
    ) -> Answer<String> {
        let text = self.model(handle, |model| model.generate(prompt, tokens, seed.into(), temperature));
        text.map_err(error)
    }

    /// `RecallAnswer`; `pairs: [string, string][]`
    pub fn recall(&self, handle: u32, pairs: JsValue, ask: &str) -> Answer {
        let pairs: Vec<(String, String)> = serde_wasm_bindgen::from_value(pairs)?;
        answer(self.model(handle, |model| model.recall(&pairs, ask)))
    }

    /// `CopyAnswer`
    pub fn copy(&self, handle: u32, text: &str) -> Answer {
        answer(self.model(handle, |model| model.copy(text)))
    }

    /// `{ handle, info }`
    pub fn trainer(&self, config: &str, seed: u32) -> Answer {
        let asked: Option<Value> = serde_json::from_str(config).ok();
        let backend = asked.as_ref().and_then(|value| value.get("backend")).and_then(Value::as_str);
        let opened = self.device_of(backend).and_then(|device| {
            let trainer = Trainer::new(config, seed.into(), &device)?;
            let info = trainer.info()?;
            Ok(Opened { handle: self.insert(Held::Trainer(Box::new(trainer))), info })
        });
        answer(opened)
    }

    /// `StepRow[]`
    #[wasm_bindgen(js_name = trainSteps)]
    pub async fn train_steps(&self, handle: u32, steps: usize) -> Answer {
        let mut trainer = self.take(handle).map_err(error)?;
        let rows = trainer.steps(steps).await;
        self.put_back(handle, trainer);
        answer(rows)
    }

    /// `Trace`
    #[wasm_bindgen(js_name = trainerRead)]
    pub async fn trainer_read(&self, handle: u32, text: String) -> Answer {
        let trainer = self.take(handle).map_err(error)?;
        let model = trainer.model().await;
        self.put_back(handle, trainer);
        answer(model.and_then(|mut model| model.read(&text)))
    }

    /// `Uint8Array`
    #[wasm_bindgen(js_name = trainerWeights)]
    pub async fn trainer_weights(&self, handle: u32) -> Answer<Vec<u8>> {
        let trainer = self.take(handle).map_err(error)?;
        let weights = trainer.weights().await;
        self.put_back(handle, trainer);
        weights.map_err(error)
    }

    /// Calls `on_point` with each `BenchPoint`.
    pub async fn bench(&self, config: String, on_point: js_sys::Function) -> Answer<()> {
        let config = BenchConfig::from_json(&config).map_err(error)?;
        let device = self.device_of(config.backend.as_deref()).map_err(error)?;
        let told = crate::bench(&config, &device, &mut |point| tell(&on_point, &point)).await;
        told.map_err(error)
    }

    /// Calls `on_row` with each `ParityRow`; `names: string[]`, none for all.
    pub async fn parity(&self, names: Vec<String>, on_row: js_sys::Function) -> Answer<()> {
        let told = crate::parity(&names, &self.device, &mut |row| tell(&on_row, &row)).await;
        told.map_err(error)
    }
}

impl Session {
    fn device_of(&self, backend: Option<&str>) -> Result<Device> {
        match backend {
            Some("cpu") => Ok(Device::flex()),
            Some(other) if other != self.backend => {
                Err(Error::Data(format!("the engine runs on `{}`, not on `{other}`", self.backend)))
            }
            _ => Ok(self.device.clone()),
        }
    }

    fn insert(&self, held: Held) -> u32 {
        let handle = *self.next.borrow();
        *self.next.borrow_mut() += 1;
        self.held.borrow_mut().insert(handle, held);
        handle
    }

    fn keep(&self, model: Model) -> Result<Opened> {
        let info = model.info()?;
        Ok(Opened { handle: self.insert(Held::Model(Box::new(model))), info })
    }

    fn model<T>(&self, handle: u32, work: impl FnOnce(&mut Model) -> Result<T>) -> Result<T> {
        match self.held.borrow_mut().get_mut(&handle) {
            Some(Held::Model(model)) => work(model),
            Some(_) => Err(Error::Data(format!("handle {handle} is a trainer: use `trainerRead`"))),
            None => Err(Error::Data(format!("handle {handle} is not open"))),
        }
    }

    fn take(&self, handle: u32) -> Result<Box<Trainer>> {
        let mut held = self.held.borrow_mut();
        let slot =
            held.get_mut(&handle).ok_or_else(|| Error::Data(format!("handle {handle} is not open")))?;
        match std::mem::replace(slot, Held::Busy) {
            Held::Trainer(trainer) => Ok(trainer),
            Held::Busy => Err(Error::Data(format!("handle {handle} is busy: await the call before"))),
            model => {
                *slot = model;
                Err(Error::Data(format!("handle {handle} is a model, not a trainer")))
            }
        }
    }

    /// Unless it was closed in the meantime.
    fn put_back(&self, handle: u32, trainer: Box<Trainer>) {
        if let Some(slot) = self.held.borrow_mut().get_mut(&handle) {
            *slot = Held::Trainer(trainer);
        }
    }
}

fn answer<T: Serialize>(result: Result<T>) -> Answer {
    let value = result.map_err(error)?;
    Ok(serde_wasm_bindgen::to_value(&value)?)
}

fn tell<T: Serialize>(listener: &js_sys::Function, value: &T) {
    let told = serde_wasm_bindgen::to_value(value)
        .map_err(JsValue::from)
        .and_then(|value| listener.call1(&JsValue::NULL, &value));
    if let Err(error) = told {
        console_error(&format!("seqzoo: a listener failed: {error:?}"));
    }
}

fn error(error: Error) -> JsError {
    JsError::new(&error.to_string())
}
