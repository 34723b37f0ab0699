//! Every golden case kept with the project passes, and a wrong one is found out.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use seqzoo_tests::golden::{Row, Verdict, run};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn judge(dir: &Path) -> Vec<Row> {
    run(dir, &Device::flex(), &|_| true, &mut |_| ()).expect("a folder of cases")
}

fn all_pass(dir: &Path, least: usize) {
    let rows = judge(dir);
    let bad: Vec<_> = rows.iter().filter(|row| !matches!(row.verdict, Verdict::Pass(_))).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(rows.len() >= least, "only {} cases", rows.len());
}

#[test]
fn layers_reproduce_their_references() {
    all_pass(&folder("layers"), 100);
}

#[test]
fn models_reproduce_their_references() {
    all_pass(&folder("models"), 11);
}

/// A case whose numbers are changed in one place fails, and names the place.
#[test]
fn a_wrong_number_is_found() {
    let name = "ssd_minimal__blk8.safetensors";
    let bytes = std::fs::read(folder("layers").join(name)).expect("the case");
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    for tensor in ["out.final_state", "grad.in.B"] {
        let info = header.info(tensor).expect("the tensor");
        let mut bytes = bytes.clone();
        // The header's own length takes 8 bytes; the exponent is in a number's last byte.
        bytes[8 + length + info.data_offsets.0 + 3] ^= 0x80;
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(name), bytes).expect("a copy");
        let rows = judge(dir.path());
        let Verdict::Fail(worst) = &rows[0].verdict else { panic!("{rows:?}") };
        assert!(worst.tensor.starts_with(tensor), "{worst:?}");
    }
}

#[test]
fn damaged_unknown_and_missing_cases_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(run(dir.path(), &Device::flex(), &|_| true, &mut |_| ()).is_err(), "an empty folder");
    let bytes = std::fs::read(folder("layers").join("ssd_minimal__blk8.safetensors")).expect("the case");
    std::fs::write(dir.path().join("cut.safetensors"), &bytes[..bytes.len() / 2]).expect("a copy");
    let mut other = bytes.clone();
    // Every mention in the header, so that its length stays.
    while let Some(at) = other[..4096].windows(11).position(|w| w == b"ssd_minimal") {
        other[at..at + 11].copy_from_slice(b"xyz_minimal");
    }
    assert_ne!(other, bytes);
    std::fs::write(dir.path().join("other.safetensors"), other).expect("a copy");
    let rows = judge(dir.path());
    assert!(matches!(rows[0].verdict, Verdict::Broken(_)), "{rows:?}");
    assert!(matches!(rows[1].verdict, Verdict::NotSupported), "{rows:?}");
}
