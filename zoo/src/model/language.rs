//! The model itself.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use seqzoo_layers::Error;
use seqzoo_layers::nn::Norm;
use seqzoo_layers::nn::{Linear, project};
use seqzoo_layers::system::{Cost, Form, Mask, Mixer};

use super::{Block, LanguageModelConfig, ModelState};
use crate::Result;

/// Tokens in, logits out, with a state. Built by [`LanguageModelConfig::init`].
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// `E: [vocab, d]`
    pub embedding: Param<Tensor<2>>,
    /// `P: [positions, d]`
    pub positions: Option<Param<Tensor<2>>>,
    /// From first to last
    pub blocks: Vec<Block>,
    /// Before the head
    pub norm: Norm,
    /// `W: [d, vocab]`; `None` where the embedding is the head
    pub head: Option<Linear>,
    /// `[vocab]`
    pub head_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(super) config: LanguageModelConfig,
}

/// What a model makes of a sequence.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[b, t, vocab]`
    pub logits: Tensor<3>,
    /// After the last token
    pub state: ModelState,
    /// Sum of the losses that mixers ask for, `[1]`; only if asked for and if any does.
    pub auxiliary: Option<Tensor<1>>,
}

impl LanguageModel {
    /// What it was built from.
    pub fn config(&self) -> &LanguageModelConfig {
        &self.config
    }

    /// Number of trainable numbers.
    pub fn num_params(&self) -> usize {
        Module::num_params(self)
    }

    /// The state before any token.
    pub fn initial_state(&self, batch: usize) -> ModelState {
        ModelState { layers: self.blocks.iter().map(|block| block.initial_state(batch)).collect() }
    }

    /// Token numbers as a tensor on the model's device, `[rows, time]`.
    ///
    /// # Errors
    /// When rows differ in length or a token is not in the vocabulary: nothing checks this later.
    pub fn tokens(&self, rows: &[Vec<u32>]) -> Result<Tensor<2, Int>> {
        let time = rows.first().map_or(0, Vec::len);
        if let Some(row) = rows.iter().find(|row| row.len() != time) {
            return Err(Error::shape("rows of tokens", format!("{time} each"), &[row.len()]).into());
        }
        if let Some(&bad) = rows.iter().flatten().find(|&&id| id as usize >= self.config.vocab) {
            let expected = format!("must be below the vocabulary's size, {}", self.config.vocab);
            return Err(Error::config("language_model", "token", bad, expected).into());
        }
        let flat: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
        let data = TensorData::new(flat, [rows.len(), time]);
        Ok(Tensor::from_data(data, &self.embedding.val().device().inner()))
    }

    /// Reads `tokens: [b, t]` from `state`.
    ///
    /// # Errors
    /// When the state belongs to another model or batch size, or positions run out.
    pub fn forward(&self, tokens: Tensor<2, Int>, state: ModelState, form: Form) -> Result<Output> {
        self.run(tokens, state, form, None, false)
    }

    /// Like [`LanguageModel::forward`], with the losses that mixers ask the training to add.
    pub fn forward_with_auxiliary(
        &self,
        tokens: Tensor<2, Int>,
        state: ModelState,
        form: Form,
    ) -> Result<Output> {
        self.run(tokens, state, form, None, true)
    }

    /// Like [`LanguageModel::forward`], skipping the tokens that `mask` marks as padding; their logits
    /// mean nothing.
    pub fn forward_masked(
        &self,
        tokens: Tensor<2, Int>,
        state: ModelState,
        form: Form,
        mask: &Mask,
    ) -> Result<Output> {
        self.run(tokens, state, form, Some(mask), false)
    }

    /// Reads one token per row, `[b]`, and returns the logits of the next, `[b, vocab]`.
    pub fn step(&self, tokens: Tensor<1, Int>, state: ModelState) -> Result<(Tensor<2>, ModelState)> {
        let output = self.forward(tokens.unsqueeze_dim(1), state, Form::Auto)?;
        Ok((output.logits.squeeze_dim(1), output.state))
    }

    /// What one forward call over `[batch, time]` tokens from the initial state costs.
    pub fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let blocks: Cost = self.blocks.iter().map(|block| block.mixer.cost(batch, time, form)).sum();
        let mlps: usize = self.blocks.iter().map(Block::mlp_flops).sum();
        let head = 2 * self.config.d_model * self.config.vocab;
        let params = self.num_params();
        let logits = batch * time * self.config.vocab;
        Cost {
            flops: blocks.flops + ((mlps + head) * batch * time) as f64,
            bytes: blocks.bytes + (4 * (params - blocks.params + logits)) as f64,
            params,
            state_bytes: blocks.state_bytes,
        }
    }

    /// What each block's mixer reads when the model reads `tokens: [b, t]` from its initial state, `[b, t, d]`
    /// each: for the mixers' views.
    pub fn mixer_inputs(&self, tokens: Tensor<2, Int>) -> Result<Vec<Tensor<3>>> {
        let states = self.initial_state(tokens.dims()[0]);
        let mut x = self.embed(tokens, states.positions(), None)?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for (block, state) in self.blocks.iter().zip(states.layers) {
            inputs.push(block.mixer_input(x.clone(), &state)?);
            x = block.forward(x, state, Form::Auto, None, false)?.0;
        }
        Ok(inputs)
    }

    fn run(
        &self,
        tokens: Tensor<2, Int>,
        state: ModelState,
        form: Form,
        mask: Option<&Mask>,
        auxiliary: bool,
    ) -> Result<Output> {
        let [b, t] = tokens.dims();
        if state.layers.len() != self.blocks.len() {
            let (has, needs) = (state.layers.len(), self.blocks.len());
            let reason = format!("it is of a model of {has} blocks, this one has {needs}");
            return Err(Error::State(reason).into());
        }
        if state.layers.iter().any(|state| state.batch() != b) {
            let reason = format!("it has {} rows, the tokens have {b}", state.batch());
            return Err(Error::State(reason).into());
        }
        if let Some(mask) = mask.filter(|mask| mask.dims() != [b, t]) {
            return Err(Error::shape("padding mask", format!("[{b}, {t}]"), &mask.dims()).into());
        }
        if b == 0 || t == 0 {
            let weight = self.embedding.val();
            let logits = Tensor::zeros([b, t, self.config.vocab], (&weight.device(), weight.dtype()));
            return Ok(Output { logits, state, auxiliary: None });
        }
        let mut x = self.embed(tokens, state.positions(), mask)?;
        let mut layers = Vec::with_capacity(self.blocks.len());
        let mut losses: Option<Tensor<1>> = None;
        for (block, state) in self.blocks.iter().zip(state.layers) {
            let (y, state, loss) = block.forward(x, state, form, mask, auxiliary)?;
            x = y;
            layers.push(state);
            losses = match (losses, loss) {
                (Some(sum), Some(loss)) => Some(sum + loss),
                (sum, loss) => loss.or(sum),
            };
        }
        let logits = self.logits(self.norm.forward(x));
        Ok(Output { logits, state: ModelState { layers }, auxiliary: losses })
    }

    fn embed(&self, tokens: Tensor<2, Int>, starts: &[usize], mask: Option<&Mask>) -> Result<Tensor<3>> {
        let [b, t] = tokens.dims();
        let rows = |table: Tensor<2>, index: Tensor<1, Int>| {
            table.select(0, index).reshape([b, t, self.config.d_model])
        };
        let mut x = rows(self.embedding.val(), tokens.reshape([b * t]));
        if let Some(scale) = self.config.embed_scale {
            x = x * scale;
        }
        if let Some(table) = &self.positions {
            let table = table.val();
            let limit = table.dims()[0];
            let mut index = Vec::with_capacity(b * t);
            for (row, &start) in starts.iter().enumerate() {
                let mut position = start;
                for i in 0..t {
                    let real = mask.is_none_or(|mask| mask.rows()[row][i]);
                    if real && position >= limit {
                        let expected = format!("must be below `learned_positions` = {limit}");
                        return Err(Error::config("language_model", "position", position, expected).into());
                    }
                    index.push(position.min(limit - 1) as i64);
                    position += usize::from(real);
                }
            }
            let index = Tensor::from_data(TensorData::new(index, [b * t]), &table.device().inner());
            x = x + rows(table, index);
        }
        Ok(x)
    }

    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        let logits = match &self.head {
            Some(head) => head.forward(x),
            None => project(x, self.embedding.val().transpose(), None),
        };
        let logits = match &self.head_bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        };
        match self.config.logit_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}
