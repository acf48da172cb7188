//! Storage classes: the layout that an inode's class asks for.

use super::query::Queries;
use crate::erasure::Layout;
use crate::errno::Errno;
use crate::pb::{self, query::Query, query_result::Result as Found};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The classes of the cluster by number; 0 is the default.
#[derive(Debug, Default)]
pub struct Classes {
    layouts: Mutex<BTreeMap<u32, Layout>>,
}

impl Classes {
    /// The layout of a class; that of the default class while it is not known.
    pub fn layout(&self, class: u32) -> Layout {
        let layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = layouts.get(&class).or_else(|| layouts.get(&0)).copied();
        known.unwrap_or_else(|| Layout::copies(2).expect("two copies are a layout"))
    }

    /// Whether a class is known.
    pub fn knows(&self, class: u32) -> bool {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&class)
    }

    /// Asks the masters for all classes.
    pub async fn refresh(&self, queries: &Arc<Queries>) -> Result<(), Errno> {
        let answer = queries.ask(Query::Classes(pb::ClassesQuery {})).await?;
        let Some(Found::Classes(found)) = answer.result.result else { return Err(Errno::EIO) };
        let known = found.classes.iter().filter_map(|class| {
            let layout = Layout::try_from(class.layout.as_ref()?).ok()?;
            Some((class.id, layout))
        });
        *self.layouts.lock().unwrap_or_else(PoisonError::into_inner) = known.collect();
        Ok(())
    }
}
