//! Tokens as a page prints and reads them.

use seqzoo::data::Tokenizer;
use seqzoo::{Error, Result};

/// The word of every token id.
pub(crate) fn vocabulary(tokenizer: &Tokenizer, recall: bool) -> Vec<String> {
    (0..tokenizer.vocab()).map(|id| word(tokenizer, recall, id)).collect()
}

fn word(tokenizer: &Tokenizer, recall: bool, id: usize) -> String {
    match tokenizer {
        Tokenizer::Bytes => match u8::try_from(id) {
            Ok(byte @ b' '..=b'~') => char::from(byte).to_string(),
            _ => format!("·{id:02x}"),
        },
        // Keys come from the lower half of the ids without 0, values from the upper.
        Tokenizer::Ids { vocab } if recall => match id {
            0 => "·".into(),
            id if id < vocab / 2 => format!("k{id}"),
            id => format!("v{}", id - vocab / 2),
        },
        _ => id.to_string(),
    }
}

/// Token ids of a text: bytes, or words of the vocabulary between blanks.
pub(crate) fn encode(tokenizer: &Tokenizer, vocabulary: &[String], text: &str) -> Result<Vec<i64>> {
    if matches!(tokenizer, Tokenizer::Bytes) {
        return tokenizer.encode(text);
    }
    text.split_whitespace().map(|word| id_of(vocabulary, word)).collect()
}

/// The id of a word.
pub(crate) fn id_of(vocabulary: &[String], word: &str) -> Result<i64> {
    let known = vocabulary.iter().position(|known| known == word).map(|id| id as i64);
    known.ok_or_else(|| {
        let some: Vec<&str> = vocabulary.iter().take(4).map(String::as_str).collect();
        Error::Data(format!(
            "`{word}` is not one of the {} words of this model ({}, …)",
            vocabulary.len(),
            some.join(", ")
        ))
    })
}

/// The text of token ids.
pub(crate) fn decode(tokenizer: &Tokenizer, vocabulary: &[String], ids: &[i64]) -> Result<String> {
    if matches!(tokenizer, Tokenizer::Bytes) {
        return tokenizer.decode(ids);
    }
    let words: Vec<&str> =
        ids.iter().filter_map(|&id| vocabulary.get(id as usize).map(String::as_str)).collect();
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_to_their_ids_and_back() {
        let recall = Tokenizer::Ids { vocab: 8 };
        let words = vocabulary(&recall, true);
        assert_eq!(words, ["·", "k1", "k2", "k3", "v0", "v1", "v2", "v3"]);
        let ids = encode(&recall, &words, "k1 v3 · k1").unwrap();
        assert_eq!(ids, [1, 7, 0, 1]);
        assert_eq!(decode(&recall, &words, &ids).unwrap(), "k1 v3 · k1");
        let error = encode(&recall, &words, "k9").unwrap_err().to_string();
        assert!(error.contains("`k9`") && error.contains("k1"), "{error}");
        let bytes = vocabulary(&Tokenizer::Bytes, false);
        assert_eq!((bytes[97].as_str(), bytes[10].as_str()), ("a", "·0a"));
    }
}
