//! The command line of seqzoo.

mod cli;

fn main() -> std::process::ExitCode {
    seqzoo::heap::keep_freed_memory();
    cli::main()
}
