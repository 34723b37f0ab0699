//! The verdicts as lines of text.

use super::{Row, Verdict, Worst};

/// One line per row.
pub fn print(row: &Row) {
    let share = |Worst { tensor, error, limit }: &Worst| format!("{error:.1e} of {limit:.1e} at {tensor}");
    let (word, detail) = match &row.verdict {
        Verdict::Pass(worst) => ("pass", format!("{:>4} tensors, worst {}", row.compared, share(worst))),
        Verdict::Fail(worst) => ("FAIL", format!("{:>4} tensors, worst {}", row.compared, share(worst))),
        Verdict::Broken(reason) => ("FAIL", reason.clone()),
        Verdict::NotSupported => ("-", format!("not supported: {}", row.architecture)),
    };
    println!("{word:<5} {:<44} {detail}", row.name);
}
