//! What the project's tests share: golden vectors and their verdicts.

pub mod golden;
