//! A matrix of weights as a picture: a small PNG in a data URI, with the right answers ringed.

use std::fmt::Write;

use super::svg::escape;
use crate::compare::{LayerMap, MapKind};

/// Colours for positive and negative weights; strength is opacity, so both page modes can show them.
const POSITIVE: [u8; 3] = [0x2a, 0x78, 0xf0];
const NEGATIVE: [u8; 3] = [0xf0, 0x7a, 0x14];

/// The `<svg>` element of one layer's map.
pub(super) fn svg(map: &LayerMap, architecture: &str) -> String {
    let n = map.size;
    let what = match map.kind {
        MapKind::Attention => "implied attention",
        MapKind::Influence => "influence",
    };
    let title = format!(
        "{architecture}, layer {}, {what}: {:.0} % of the weight of each query is on the right pair",
        map.layer,
        100.0 * map.on_target
    );
    let mut out = format!(
        "<svg class=\"map\" viewBox=\"0 0 {n} {n}\" role=\"img\"><title>{}</title>\
         <image width=\"{n}\" height=\"{n}\" preserveAspectRatio=\"none\" \
         href=\"data:image/png;base64,{}\"/>",
        escape(&title),
        base64(&png(n, &map.weights))
    );
    for [row, column] in &map.targets {
        let (x, y) = (*column as f64 + 0.5, *row as f64 + 0.5);
        let _ = write!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"1.5\"/>");
    }
    out.push_str("</svg>");
    out
}

/// A palette PNG of an `n × n` matrix of weights in `[-1, 1]`.
fn png(n: usize, weights: &[f32]) -> Vec<u8> {
    let mut rows = Vec::with_capacity(n * (n + 1));
    for row in weights.chunks(n.max(1)) {
        rows.push(0); // no filter
        rows.extend(row.iter().map(|&w| {
            let w = if w.is_finite() { w.clamp(-1.0, 1.0) } else { 0.0 };
            (128.0 + 127.0 * w).round() as u8
        }));
    }
    let colours: Vec<u8> = (0..256).flat_map(|i| if i >= 128 { POSITIVE } else { NEGATIVE }).collect();
    // The square root lifts weak weights, which linear opacity would hide.
    let opacity: Vec<u8> = (0..256)
        .map(|i| (f64::from((i - 128i32).abs()) / 127.0).min(1.0).sqrt())
        .map(|strength| (255.0 * strength).round() as u8)
        .collect();

    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let side = (n as u32).to_be_bytes();
    let header = [&side[..], &side[..], &[8, 3, 0, 0, 0]].concat();
    chunk(&mut out, b"IHDR", &header);
    chunk(&mut out, b"PLTE", &colours);
    chunk(&mut out, b"tRNS", &opacity);
    chunk(&mut out, b"IDAT", &stored_zlib(&rows));
    chunk(&mut out, b"IEND", &[]);
    out
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    out.extend((data.len() as u32).to_be_bytes());
    let start = out.len();
    out.extend(kind);
    out.extend(data);
    let check = crc32(&out[start..]);
    out.extend(check.to_be_bytes());
}

/// A zlib stream of uncompressed blocks: maps are a few kilobytes.
fn stored_zlib(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = data.len().div_ceil(0xffff).max(1);
    for i in 0..blocks {
        let block = &data[i * 0xffff..data.len().min((i + 1) * 0xffff)];
        let length = block.len() as u16;
        out.push(u8::from(i + 1 == blocks));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    out.extend((b << 16 | a).to_be_bytes());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len().div_ceil(3) * 4);
    for group in data.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= group.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_published_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let zlib = stored_zlib(b"Wikipedia");
        assert_eq!(zlib[zlib.len() - 4..], 0x11e6_0398u32.to_be_bytes());
    }

    #[test]
    fn base64_pads_as_the_standard_says() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
