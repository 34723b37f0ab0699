//! What `seqzoo list` and `seqzoo describe` print about each architecture, by family.

mod attention;
mod delta;
mod linear;
mod miras;
mod recurrent;
mod rwkv;
mod solvers;
mod ttt;

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

/// Architectures with the same kind of state.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What they have in common.
    pub title: &'static str,
    /// Its members.
    pub members: &'static [Architecture],
}

const FAMILIES: &[Family] = &[
    Family { title: "Softmax attention: a cache that grows", members: attention::ALL },
    Family {
        title: "Linear attention: a matrix that is added to, with and without decay",
        members: linear::ALL,
    },
    Family { title: "Delta rule: a matrix that is corrected", members: delta::ALL },
    Family { title: "Memories that are solved for, or kept at many scales", members: solvers::ALL },
    Family { title: "RWKV", members: rwkv::ALL },
    Family { title: "State spaces and recurrent cells", members: recurrent::ALL },
    Family { title: "Miras: a memory trained while it reads", members: miras::ALL },
    Family { title: "TTT: a memory trained mini-batch by mini-batch", members: ttt::ALL },
];

/// All families.
pub fn families() -> &'static [Family] {
    FAMILIES
}

/// All architectures, in the registry's order.
pub fn architectures() -> impl Iterator<Item = &'static Architecture> {
    MixerConfig::NAMES.iter().filter_map(|name| architecture(name))
}

/// The architecture of that name.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    FAMILIES.iter().flat_map(|family| family.members).find(|a| a.name == name)
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
        let written = FAMILIES.iter().map(|family| family.members.len()).sum::<usize>();
        assert_eq!(written, MixerConfig::NAMES.len());
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        assert_eq!(nearest("gated_deltnet"), Some("gated_deltanet"));
        assert_eq!(nearest("zzz"), None);
    }
}
