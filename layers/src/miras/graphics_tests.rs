//! The kernel for graphics devices against the tensor form on the CPU, in double precision. Every buffer it makes is full
//! of what is not a number before.

use super::*;
use burn::module::Module;

use crate::miras::{TttMemory, TttTokens};
use crate::testing::graphics;

/// Largest error, where tensors in single precision come close.
const CLOSE: f64 = 1e-5;

impl Case {
    /// Outputs and the last memory of a call after another, of so many tokens each: by tensor operations on the CPU, or by
    /// the kernel.
    fn values(&self, device: &Device, dtype: DType, parts: &[usize]) -> Vec<Vec<f64>> {
        let ([b, h, t, n], flex) = (self.dims, &Device::flex());
        let (inputs, parameters) = self.inputs(dtype);
        let order = |x: Tensor<4>| match self.turned {
            true => x.to_device(device).swap_dims(1, 3).mul_scalar(1.0).swap_dims(1, 3),
            false => x.to_device(device),
        };
        let all: Vec<_> = inputs.into_iter().map(order).collect();
        let mut memory = self.memory.init(h, n, 0.02, &mut Init::new(1, device));
        if let Memory::Mlp(mlp) = &mut memory {
            [mlp.norm_weight, mlp.norm_bias] = parameters.map(|x| Param::from_tensor(x.to_device(device)));
        }
        let valid = self.lengths.as_ref().map(|lengths| {
            Lengths(lengths.clone()).valid(t, device, dtype).unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3)
        });
        let depth = memory.names().len();
        let slot = |index: usize| all[7 + index * depth..][..depth].to_vec();
        let momentum = if self.momentum { slot(2) } else { Vec::new() };
        let mut fast = Fast { running: slot(0), anchor: slot(1), momentum };
        let gradient = |r, v, delta| self.bias.gradient(r, v, delta);
        let rule = Rule {
            memory: &memory,
            gradient: &gradient,
            bias: (device != flex).then_some(self.bias),
            map: Map::new(Retention::L2, &[], Vec::new()),
            axes: vec![Axis::All; depth],
            steps: 1,
            read: ReadAt::Token,
        };
        let (mut done, mut found) = (0, Vec::new());
        for &part in parts {
            let cut = |x: &Tensor<4>| x.clone().narrow(2, done, part);
            let [q, k, v, delta, log_alpha, eta, log_mu] = [0, 1, 2, 3, 4, 5, 6].map(|i| cut(&all[i]));
            let gates = vec![Step { log_alpha, eta, log_mu: self.momentum.then_some(log_mu) }];
            let tokens = Tokens { q, k, v, delta, gates, valid: None };
            let tokens = match &valid {
                Some(valid) => tokens.gate_padding(cut(valid)),
                None => tokens,
            };
            let phase = (self.phase + done) % self.chunk;
            let lengths = self.lengths.as_ref().map(|lengths| {
                lengths.iter().map(|length| length.saturating_sub(done).min(part)).collect::<Vec<_>>()
            });
            let clock = Clock::new(&vec![phase; b], self.chunk, lengths.as_deref());
            let y = if device == flex {
                let (y, next) = chunk_wise(&rule, tokens, fast, &clock, phase);
                fast = next;
                y
            } else {
                rule.on_graphics(&tokens, &mut fast, &clock).expect("it is for the kernel")
            };
            found.push(y);
            done += part;
        }
        let y = Tensor::cat(found, 2);
        assert_eq!(y.dims(), [b, h, t, n]);
        [vec![y], fast.running, fast.anchor, fast.momentum].into_iter().flatten().map(numbers).collect()
    }

    fn check_there(&self) {
        let t = self.dims[2];
        let whole = vec![t];
        let expected = self.values(&Device::flex(), DType::F64, &whole);
        let off = |found: Vec<Vec<f64>>| {
            let errors = found.iter().zip(&expected).map(|(found, expected)| error(found, expected));
            errors.fold(0.0, f64::max)
        };
        for device in graphics() {
            // At once; and in parts, of which later ones begin with what earlier ones left.
            let mut ways = vec![whole.clone()];
            if t > 3 && self.lengths.is_none() {
                ways.push(vec![1, t - 3, 1, 1]);
            }
            for parts in ways {
                let found = off(self.values(&device, DType::F32, &parts));
                // Some of these memories make much of the last digit, in tensors as here.
                let close = found <= CLOSE || {
                    let by_tensors = off(self.values(&Device::flex(), DType::F32, &whole));
                    found <= 5.0 * by_tensors
                };
                assert!(close, "{self:?} in {parts:?}: off by {found:e}");
            }
        }
    }
}

#[test]
fn the_smallest_memory_is_the_tensor_form() {
    let memory = MemoryConfig::Linear;
    for (t, chunk) in [(1, 1), (1, 4), (4, 4), (3, 1)] {
        Case { memory, dims: [1, 1, t, 3], chunk, ..Case::default() }.check_there();
    }
}

#[test]
fn every_memory_and_loss_is_the_tensor_form() {
    for memory in memories() {
        for momentum in [false, true] {
            Case { memory, momentum, ..Case::default() }.check_there();
        }
    }
    for bias in biases() {
        Case { memory: DEEP, bias, ..Case::default() }.check_there();
    }
}

#[test]
fn calls_may_begin_and_end_anywhere_there() {
    for (t, chunk, phase) in [(1, 4, 0), (3, 4, 1), (4, 4, 2), (9, 4, 3), (6, 1, 0), (40, 19, 7)] {
        for momentum in [false, true] {
            Case { dims: [2, 1, t, 8], chunk, phase, momentum, ..Case::default() }.check_there();
        }
    }
    // Heads that are no multiple of anything, more tokens than units or numbers of a head.
    Case { dims: [1, 1, 35, 17], chunk: 33, ..Case::default() }.check_there();
    Case { dims: [3, 2, 40, 3], chunk: 40, memory: MemoryConfig::Linear, ..Case::default() }.check_there();
}

#[test]
fn rows_may_end_before_others_there() {
    for (phase, lengths) in [(0, [11, 6]), (1, [3, 11]), (0, [4, 0]), (0, [9, 8])] {
        for (momentum, memory) in [(false, DEEP), (true, TTT), (true, MemoryConfig::Linear)] {
            let lengths = Some(lengths.to_vec());
            Case { phase, lengths, momentum, memory, ..Case::default() }.check_there();
        }
    }
}

#[test]
fn inputs_may_lie_in_any_order_there() {
    for (momentum, memory) in [(false, DEEP), (true, TTT)] {
        Case { momentum, memory, turned: true, ..Case::default() }.check_there();
    }
}

proptest! {
    #![proptest_config(properties(6))]

    #[test]
    fn it_is_the_tensor_form_there_whatever_is_asked(
        dims in [1usize..3, 1usize..3, 1usize..24, 4usize..10],
        (chunk, phase) in (4usize..10).prop_flat_map(|chunk| (Just(chunk), 0..chunk)),
        momentum: bool,
        offset: bool,
        seed in any::<u64>(),
    ) {
        let memory = if offset { TTT } else { DEEP };
        Case { memory, dims, chunk, phase, momentum, seed, ..Case::default() }.check_there();
    }
}

/// TTT's memory, in calls that begin and end anywhere in its mini-batches, with padding or without.
#[test]
fn mini_batches_are_those_of_the_cpu() {
    const H: usize = 2;
    for (hidden, norm, n) in [(None, true, 4), (Some(6), true, 5), (Some(6), false, 4)] {
        let mut init = Init::new(8, &Device::flex());
        let mut memory = TttMemory::new(H, n, hidden, norm, &mut init);
        memory.b1 = init.normal(memory.b1.dims(), 0.3);
        memory.norm_weight = norm.then(|| init.normal([H, n], 1.0));
        for (lengths, parts) in [
            (None, vec![14]),
            (None, vec![5, 1, 1, 1, 6]),
            (None, vec![12]),
            (None, vec![1; 9]),
            (Some([14, 6]), vec![14]),
            (Some([3, 8]), vec![8]),
        ] {
            let t: usize = parts.iter().sum();
            let mut random = |width, std| init.normal([2, H, t, width], std).val().detach();
            let [q, k, v] = [0, 1, 2].map(|_| random(n, 0.7));
            let mut eta = random(1, 0.5).abs().mul_scalar(0.5).add_scalar(0.1);
            if let Some(lengths) = lengths {
                let valid = Lengths(lengths.to_vec()).valid(t, &Device::flex(), DType::F32);
                eta = eta * valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3);
            }
            let scale = (0..t).map(|t| 1.0 / (t % 4 + 1) as f64).collect::<Vec<_>>();
            let scale =
                Tensor::from_data(burn::tensor::TensorData::new(scale, [1, 1, t, 1]), &Device::flex());
            let all = [q, k, v, eta, scale];
            let run = |device: Option<&Device>| {
                let dtype = if device.is_some() { DType::F32 } else { DType::F64 };
                let there = device.cloned().unwrap_or(Device::flex());
                let memory = crate::params::cast(memory.clone(), dtype).to_device(&there);
                let (mut fast, mut done, mut found) = (memory.initial(2), 0, Vec::new());
                for &part in &parts {
                    let cut = |x: &Tensor<4>| x.clone().cast(dtype).to_device(&there).narrow(2, done, part);
                    let [q, k, v, eta, scale] = all.each_ref().map(cut);
                    let tokens = TttTokens { q, k, v, eta, scale };
                    let left = lengths.map(|lengths| lengths.map(|length| length - done));
                    let clock = Clock::new(&[done % 4; 2], 4, left.as_ref().map(|left| &left[..]));
                    found.push(match device {
                        Some(_) => memory.on_graphics(&tokens, &mut fast, &clock).expect("it is for it"),
                        None => {
                            let q = tokens.q.clone();
                            let (z, next) = memory.recurrent(tokens, fast, &clock, |_, _| {});
                            fast = next;
                            memory.output(q, z)
                        }
                    });
                    done += part;
                }
                let sum = fast.sum.unwrap_or_else(|| fast.start.iter().map(Tensor::zeros_like).collect());
                let all = [vec![Tensor::cat(found, 2)], fast.start, sum].concat();
                all.into_iter().map(numbers).collect::<Vec<_>>()
            };
            let expected = run(None);
            for device in graphics() {
                for (found, expected) in run(Some(&device)).iter().zip(&expected) {
                    let off = error(found, expected);
                    assert!(off <= CLOSE, "{hidden:?} {norm} {lengths:?} {parts:?}: off by {off:e}");
                }
            }
        }
    }
}

/// Gradients, and what the kernel has no equations for, are left to tensors.
#[test]
fn what_it_cannot_do_there_is_left_to_tensors() {
    for device in graphics() {
        let memory = DEEP.init(2, 4, 0.02, &mut Init::new(1, &device));
        let run = |axis, retention, lag: bool, batch: usize, phases: &[usize], autodiff: bool| {
            let device = if autodiff { device.clone().autodiff() } else { device.clone() };
            let gradient = |r, _, _| r;
            let rule = Rule {
                memory: &memory,
                gradient: &gradient,
                bias: Some(Bias::L2),
                map: Map::new(retention, &[], Vec::new()),
                axes: vec![axis; 2],
                steps: 1,
                read: ReadAt::Token,
            };
            let x = Tensor::<4>::ones([batch, 2, 3, 4], &device);
            let gate = Tensor::<4>::zeros([batch, 2, 3, 1], &device);
            let step = Step { log_alpha: gate.clone(), eta: gate.clone(), log_mu: None };
            let tokens =
                Tokens { q: x.clone(), k: x.clone(), v: x, delta: gate, gates: vec![step], valid: None };
            let running = memory.initial(batch.max(1));
            let mut fast = Fast { anchor: running.clone(), running, momentum: Vec::new() };
            let clock = Clock::new(phases, 4, None).with_lag(lag);
            rule.on_graphics(&tokens, &mut fast, &clock).is_some()
        };
        assert!(run(Axis::All, Retention::L2, false, 1, &[0], false));
        assert!(run(Axis::All, Retention::L2, false, 2, &[1, 1], false));
        assert!(!run(Axis::All, Retention::L2, false, 2, &[1, 2], false));
        assert!(!run(Axis::All, Retention::L2, false, 0, &[], false));
        assert!(!run(Axis::Rows, Retention::L2, false, 1, &[0], false));
        assert!(!run(Axis::All, Retention::Kl, false, 1, &[0], false));
        assert!(!run(Axis::All, Retention::L2, true, 1, &[0], false));
        assert!(!run(Axis::All, Retention::L2, false, 1, &[0], true));
    }
}
