//! ListVolumes and its paging token.
//!
//! A token names the last volume of a page instead of an index: volumes that come and go between two pages then neither
//! hide others nor make the token invalid, and no server has to remember anything. It never reads the list itself.

use std::fmt;

use tonic::Code;

use super::field;
use crate::Refusal;
use crate::proto::ListVolumesRequest;

/// A marker in front, so that a token of somebody else is recognised and not taken for a volume id.
const TOKEN_PREFIX: &str = "after:";

/// One page of the list of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListVolumes {
    /// The most entries the caller takes; `None` for all.
    pub max_entries: Option<usize>,
    /// Where the page begins; `None` for the first.
    pub start: Option<PageToken>,
}

/// Where a page begins: behind a volume, in the order of ids as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageToken {
    /// The last volume of the page before; it need not exist any more.
    pub after: String,
}

impl fmt::Display for PageToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{TOKEN_PREFIX}{}", self.after)
    }
}

impl PageToken {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let id = text.strip_prefix(TOKEN_PREFIX).and_then(|id| field::volume_id(id).ok());
        // Aborted is the code that the CSI specification demands here: the caller starts the list again.
        let refusal = || {
            let sentence = format!(
                "starting_token is {}: allowed is a next_token of an earlier answer; start again without a token",
                crate::refusal::quoted(text)
            );
            Refusal::new(Code::Aborted, "starting_token", sentence)
        };
        id.map(|after| Self { after }).ok_or_else(refusal)
    }
}

impl TryFrom<&ListVolumesRequest> for ListVolumes {
    type Error = Refusal;

    fn try_from(message: &ListVolumesRequest) -> Result<Self, Refusal> {
        let max_entries = usize::try_from(message.max_entries)
            .map_err(|_| Refusal::value("max_entries", &message.max_entries.to_string(), "0 for all, or more"))?;
        let token = Some(message.starting_token.as_str()).filter(|token| !token.is_empty());
        Ok(Self {
            max_entries: Some(max_entries).filter(|entries| *entries > 0),
            start: token.map(PageToken::parse).transpose()?,
        })
    }
}

impl ListVolumes {
    /// Cuts this page out of all volumes, sorted by id, and says where the next one begins.
    pub fn page<'a, T>(&self, sorted: &'a [T], id: impl Fn(&T) -> &str) -> (&'a [T], Option<PageToken>) {
        let begin = match &self.start {
            None => 0,
            Some(token) => sorted.partition_point(|item| id(item) <= token.after.as_str()),
        };
        let rest = sorted.get(begin..).unwrap_or_default();
        let page = self.max_entries.and_then(|entries| rest.get(..entries)).unwrap_or(rest);
        let next = if page.len() < rest.len() { page.last() } else { None };
        (page, next.map(|item| PageToken { after: id(item).to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(max_entries: i32, starting_token: &str) -> Result<ListVolumes, Code> {
        let message = ListVolumesRequest { max_entries, starting_token: starting_token.to_owned() };
        ListVolumes::try_from(&message).map_err(|refusal| refusal.code)
    }

    #[test]
    fn limits_and_tokens() {
        assert_eq!(request(0, ""), Ok(ListVolumes { max_entries: None, start: None }));
        assert_eq!(request(-1, ""), Err(Code::InvalidArgument));
        let start = Some(PageToken { after: "pvc-1".into() });
        assert_eq!(request(7, "after:pvc-1"), Ok(ListVolumes { max_entries: Some(7), start }));
        for foreign in ["invalid-token", "after:", "after:a/b", "7"] {
            assert_eq!(request(1, foreign), Err(Code::Aborted), "{foreign}");
        }
    }

    #[test]
    fn a_token_survives_the_deletion_of_its_volume() {
        let list = ListVolumes { max_entries: Some(2), start: Some(PageToken { after: "b".into() }) };
        let (page, next) = list.page(&["a", "c", "d", "e"], |id| id);
        assert_eq!((page, next.map(|token| token.to_string())), (&["c", "d"][..], Some("after:d".into())));
    }

    proptest! {
        #[test]
        fn the_pages_make_up_the_list(ids in prop::collection::btree_set("[a-z]{1,4}", 0..30), entries in 1..9i32) {
            let ids: Vec<String> = ids.into_iter().collect();
            let (mut seen, mut token) = (Vec::new(), String::new());
            for _ in 0..=ids.len() {
                let list = request(entries, &token).map_err(|code| TestCaseError::fail(format!("{code}")))?;
                let (page, next) = list.page(&ids, |id| id);
                prop_assert!(page.len() <= entries as usize);
                seen.extend_from_slice(page);
                match next {
                    None => break,
                    Some(next) => token = next.to_string(),
                }
            }
            prop_assert_eq!(seen, ids);
        }
    }
}
