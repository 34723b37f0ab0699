//! What `seqzoo list` and `seqzoo describe` print about each architecture, by family.

mod attention;
mod delta;
mod linear;
mod miras;
mod recurrent;
mod rwkv;
mod solvers;

use super::MixerConfig;

/// Facts about an architecture that its code cannot state.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// Name in files and on the command line.
    pub name: &'static str,
    /// Full name.
    pub title: &'static str,
    /// arXiv id of the paper.
    pub paper: &'static str,
    /// What the state is and how it grows.
    pub state: &'static str,
    /// The recurrence in plain text.
    pub equations: &'static str,
}

const FAMILIES: &[&[Architecture]] =
    &[attention::ALL, linear::ALL, delta::ALL, recurrent::ALL, miras::ALL, rwkv::ALL, solvers::ALL];

/// All architectures, in the registry's order.
pub fn architectures() -> impl Iterator<Item = &'static Architecture> {
    MixerConfig::NAMES.iter().filter_map(|name| architecture(name))
}

/// The architecture of that name.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    FAMILIES.iter().flat_map(|family| family.iter()).find(|a| a.name == name)
}

/// The known name most like a misspelt one, if any is close.
pub fn nearest(name: &str) -> Option<&'static str> {
    architectures()
        .map(|a| (strsim::jaro_winkler(&name.to_lowercase(), a.name), a.name))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registered_mixer_is_described_once_and_nothing_else() {
        let described: Vec<_> = architectures().map(|a| a.name).collect();
        assert_eq!(described, MixerConfig::NAMES);
        let written = FAMILIES.iter().map(|family| family.len()).sum::<usize>();
        assert_eq!(written, MixerConfig::NAMES.len());
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        assert_eq!(nearest("gated_deltnet"), Some("gated_deltanet"));
        assert_eq!(nearest("zzz"), None);
    }
}
