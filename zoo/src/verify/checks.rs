//! The promises about values and states.

use burn::tensor::{Device, Tensor};
use seqzoo_layers::system::{Form, Growth, Mask, Mixer, Snapshots, State};
use seqzoo_layers::{Result, Value};

use super::probe::{BATCH, Probe, Worst};
use super::{Options, Outcome, Subject, VALUE_TOLERANCE};

fn forms_of(time: usize) -> Vec<Form> {
    let mut forms: Vec<Form> =
        [1, 3, 8, 16, 64].into_iter().map(|size| Form::Chunked { size: size.min(time.max(1)) }).collect();
    forms.extend([Form::Parallel, Form::Auto]);
    forms.dedup();
    forms
}

/// Every form gives the reference's outputs and final state, from a cold and from a warm start.
pub(super) async fn forms(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let x = probe.input(BATCH, options.time)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    for start in [probe.layer.initial_state(BATCH), probe.warm_state(BATCH)?] {
        let (y, end) = probe.run(&x, &start, Form::Recurrent)?;
        for form in forms_of(options.time) {
            let (other, other_end) = probe.run(&x, &start, form)?;
            worst.compare(&form.to_string(), &other.into(), &y.clone().into()).await?;
            worst.states(&form.to_string(), &other_end, &end).await?;
        }
    }
    Ok(worst.outcome())
}

/// Lengths 0, 1, 2 and 3, and an empty batch.
pub(super) async fn lengths(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    let start = probe.warm_state(BATCH)?;
    let x = probe.input(BATCH, 3)?;
    let nothing = Tensor::zeros([BATCH, 0, subject.d_model], device);
    let (none, same) = probe.run(&nothing, &start, Form::Auto)?;
    let empty = none.dims() == [BATCH, 0, subject.d_model];
    worst.record("length 0: shape", if empty { 0.0 } else { f64::INFINITY });
    worst.states("length 0", &same, &start).await?;
    for time in 1..=3 {
        let x = x.clone().narrow(1, 0, time);
        let (y, end) = probe.run(&x, &start, Form::Recurrent)?;
        for form in [Form::Parallel, Form::Auto, Form::Chunked { size: 2 }, Form::Chunked { size: 64 }] {
            let (other, other_end) = probe.run(&x, &start, form)?;
            let place = format!("length {time}, {form}");
            worst.compare(&place, &other.into(), &y.clone().into()).await?;
            worst.states(&place, &other_end, &end).await?;
        }
    }
    Ok(worst.outcome())
}

/// Folding `step` over the tokens gives the sequence.
pub(super) async fn step(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let time = options.time.min(19);
    let x = probe.input(BATCH, time)?;
    let start = probe.warm_state(BATCH)?;
    let (y, end) = probe.run(&x, &start, Form::Chunked { size: 8 })?;
    let (mut state, mut outputs) = (start, Vec::new());
    for t in 0..time {
        let (y, next) = probe.layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state)?;
        outputs.push(y.unsqueeze_dim::<3>(1));
        state = next;
    }
    let mut worst = Worst::new(VALUE_TOLERANCE);
    worst.compare("steps", &Tensor::cat(outputs, 1).into(), &y.into()).await?;
    worst.states("steps", &state, &end).await?;
    Ok(worst.outcome())
}

/// Cutting the sequence anywhere, in any mix of forms, changes nothing.
pub(super) async fn split(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let time = options.time;
    let x = probe.input(BATCH, time)?;
    let start = probe.warm_state(BATCH)?;
    let (y, end) = probe.run(&x, &start, Form::Auto)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    let mixes = [Form::Parallel, Form::Chunked { size: 4 }, Form::Recurrent, Form::Auto];
    for (round, cuts) in [vec![1], vec![time / 2], vec![time - 1], vec![3, 4, 11, 16]].iter().enumerate() {
        let mut edges = vec![0];
        edges.extend(cuts.iter().copied().filter(|&c| c > 0 && c < time));
        edges.push(time);
        let (mut state, mut parts) = (start.clone(), Vec::new());
        for (i, pair) in edges.windows(2).enumerate() {
            let part = x.clone().narrow(1, pair[0], pair[1] - pair[0]);
            let (y, next) = probe.run(&part, &state, mixes[(i + round) % mixes.len()])?;
            parts.push(y);
            state = next;
        }
        let place = format!("cut at {cuts:?}");
        worst.compare(&place, &Tensor::cat(parts, 1).into(), &y.clone().into()).await?;
        worst.states(&place, &state, &end).await?;
    }
    Ok(worst.outcome())
}

/// A state written to bytes and read back continues as if nothing had happened.
pub(super) async fn resume(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let state = probe.warm_state(BATCH)?;
    let x = probe.input(BATCH, 7)?;
    let loaded = State::from_bytes(&state.to_bytes_async().await?, device)?;
    let mut worst = Worst::new(0.0);
    worst.states("saved and loaded", &loaded, &state).await?;
    let (y, _) = probe.run(&x, &state, Form::Auto)?;
    let (other, _) = probe.run(&x, &loaded, Form::Auto)?;
    worst.compare("continued", &other.into(), &y.into()).await?;
    Ok(worst.outcome())
}

/// Changing one token changes no output before it, and does change its own.
pub(super) async fn causality(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let time = options.time;
    let x = probe.input(BATCH, time)?;
    let start = probe.warm_state(BATCH)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    for form in [Form::Auto, Form::Chunked { size: 8 }, Form::Parallel] {
        let (y, _) = probe.run(&x, &start, form)?;
        for j in [1, time / 2, time - 1] {
            let other = probe.input(BATCH, 1)?.mul_scalar(3.0);
            let mut parts = vec![x.clone().narrow(1, 0, j), other];
            if j + 1 < time {
                parts.push(x.clone().narrow(1, j + 1, time - j - 1));
            }
            let (changed, _) = probe.run(&Tensor::cat(parts, 1), &start, form)?;
            let before: (Value, Value) =
                (changed.clone().narrow(1, 0, j).into(), y.clone().narrow(1, 0, j).into());
            worst.compare(&format!("{form}, before token {j}"), &before.0, &before.1).await?;
            let own: Value = (changed.narrow(1, j, 1) - y.clone().narrow(1, j, 1)).into();
            let moved = own.to_f64_async().await?.iter().any(|d| d.abs() > 1e-6);
            worst.record(&format!("{form}, token {j} itself"), if moved { 0.0 } else { f64::INFINITY });
        }
    }
    Ok(worst.outcome())
}

/// A row alone gives what it gives in a batch; `select` and `repeat` move rows.
pub(super) async fn batch(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let x = probe.input(3, options.time)?;
    let start = probe.warm_state(3)?;
    let (y, end) = probe.run(&x, &start, Form::Auto)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    for row in 0..3 {
        let (alone, alone_end) =
            probe.run(&x.clone().narrow(0, row, 1), &start.select(&[row])?, Form::Auto)?;
        let place = format!("row {row}");
        worst.compare(&place, &alone.into(), &y.clone().narrow(0, row, 1).into()).await?;
        worst.states(&place, &alone_end, &end.select(&[row])?).await?;
    }
    let twice = end.select(&[2])?.repeat(2)?;
    worst.states("repeat", &twice, &end.select(&[2, 2])?).await?;
    Ok(worst.outcome())
}

/// Padded tokens, wherever they stand, are as good as absent.
pub(super) async fn padding(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let time = options.time.min(23);
    let x = probe.input(3, time)?;
    // Left, right and scattered padding.
    let rows = vec![
        (0..time).map(|t| t >= 4).collect::<Vec<_>>(),
        (0..time).map(|t| t < time - 7).collect(),
        (0..time).map(|t| t % 5 != 1 && t % 7 != 3).collect(),
    ];
    let mask = Mask::new(rows.clone())?;
    let start = probe.warm_state(3)?;
    let more = probe.input(3, 6)?;
    let mut worst = Worst::new(VALUE_TOLERANCE);
    for form in [Form::Auto, Form::Recurrent, Form::Chunked { size: 5 }] {
        let (y, end) = probe.layer.forward_masked(x.clone(), start.clone(), form, &mask)?;
        // The padded batch continues like the unpadded rows do.
        let (next, _) = probe.run(&more, &end, form)?;
        for (row, real) in rows.iter().enumerate() {
            let kept: Vec<usize> = (0..time).filter(|&t| real[t]).collect();
            let pick = |x: &Tensor<3>| Value::from(x.clone().narrow(0, row, 1)).select(1, &kept);
            let alone = pick(&x).tensor::<3>("row")?;
            let (expected, alone_end) = probe.run(&alone, &start.select(&[row])?, Form::Auto)?;
            let place = format!("{form}, row {row}");
            worst.compare(&place, &pick(&y), &expected.into()).await?;
            let (expected, _) = probe.run(&more.clone().narrow(0, row, 1), &alone_end, Form::Auto)?;
            worst
                .compare(
                    &format!("{place}, continued"),
                    &next.clone().narrow(0, row, 1).into(),
                    &expected.into(),
                )
                .await?;
        }
    }
    Ok(worst.outcome())
}

/// Going back: a cache is truncated, a memory is restored from a snapshot and replayed.
pub(super) async fn rewind(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let mut probe = Probe::new(subject, device, options)?;
    let x = probe.input(BATCH, 12)?;
    let mut snapshots = Snapshots::every(4);
    let mut state = probe.layer.initial_state(BATCH);
    let mut reference = state.clone();
    for t in 0..12 {
        snapshots.offer(&state);
        let token = x.clone().narrow(1, t, 1);
        state = probe.run(&token, &state, Form::Auto)?.1;
        if t == 6 {
            reference = state.clone();
        }
    }
    let mut worst = Worst::new(VALUE_TOLERANCE);
    match snapshots.restore(7) {
        Some(kept) => {
            let from = kept.position().unwrap_or(0);
            let (_, replayed) = probe.run(&x.clone().narrow(1, from, 7 - from), kept, Form::Auto)?;
            worst.states("snapshot", &replayed, &reference).await?;
        }
        None => worst.record("snapshot: none at or before the position", f64::INFINITY),
    }
    // A memory that grows with the logarithm of the length is restored like one of fixed size.
    let growth = |state: &State| -> usize {
        let slots = state.slots().filter(|(.., growth)| !matches!(growth, Growth::PerDoubling { .. }));
        slots.map(|(_, v, _)| v.numel()).sum()
    };
    if let Ok(truncated) = state.truncate(7) {
        worst.states("truncated", &truncated, &reference).await?;
    } else if growth(&state) > growth(&reference) {
        worst.record("a growing state that cannot be truncated", f64::INFINITY);
    }
    Ok(worst.outcome())
}
