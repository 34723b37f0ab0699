//! seqzoo.
