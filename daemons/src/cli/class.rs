//! `mooseng class`.

use super::connect::{Client, Masters};
use super::{Common, out, place};
use crate::cli::out::say;
use crate::fail::Fail;
use clap::Subcommand;
use mooseng::erasure::Layout;
use mooseng::pb;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(super) enum ClassCommand {
    /// Make a class
    Create {
        /// Its name
        name: String,
        /// k+m: 1+1 is two copies, 4+2 four data and two parity shards
        layout: String,
    },
    /// The classes
    List,
    /// Choose the class of a file or, for what is made in it from now on, of a directory
    Set {
        /// A file or directory on a mount
        path: PathBuf,
        /// A class's name, or k+m
        class: String,
    },
    /// The class of a file or directory
    Get {
        /// A file or directory on a mount
        path: PathBuf,
    },
}

pub(super) async fn run(common: &Common, command: ClassCommand) -> Result<(), Fail> {
    match command {
        ClassCommand::Create { name, layout } => {
            let masters = common.connect()?;
            let id = create(&masters, &name, parse(&layout)?).await?;
            match common.json {
                true => out::json(&json!({ "id": id, "name": name })),
                false => say!("class {name}: {layout}"),
            }
        }
        ClassCommand::List => list(common).await?,
        ClassCommand::Set { path, class } => set(common, &path, &class).await?,
        ClassCommand::Get { path } => get(common, &path).await?,
    }
    Ok(())
}

async fn list(common: &Common) -> Result<(), Fail> {
    let known = classes(&common.connect()?).await?;
    let default = known.default_class.as_ref().map(|class| class.id);
    if common.json {
        let class = |class: &pb::StorageClass| class_json(class, Some(class.id) == default);
        out::json(&known.classes.iter().map(class).collect());
        return Ok(());
    }
    let rows = known.classes.iter().map(|class| {
        let mark = if Some(class.id) == default { "default" } else { "" };
        vec![class.name.clone(), layout_text(class.layout.as_ref()), mark.to_owned()]
    });
    out::table(&["CLASS", "LAYOUT", ""], rows);
    Ok(())
}

async fn set(common: &Common, path: &Path, class: &str) -> Result<(), Fail> {
    let target = place::resolve(common, path)?;
    let known = classes(&target.masters).await?;
    let name = match known.classes.iter().find(|known| known.name == class) {
        Some(known) => known.name.clone(),
        None => {
            let layout = parse(class)?;
            let same = |known: &&pb::StorageClass| known.layout == Some(layout);
            match known.classes.iter().find(same) {
                Some(known) => known.name.clone(),
                None => {
                    create(&target.masters, class, layout).await?;
                    class.to_owned()
                }
            }
        }
    };
    let request = pb::SetClassRequest { path: target.path.clone(), class: name.clone() };
    let ask = |mut client: Client| {
        let request = request.clone();
        async move { client.set_class(request).await }
    };
    target.masters.call(ask).await?;
    match common.json {
        true => out::json(&json!({ "path": path, "class": name })),
        false => say!("{}: {name}", path.display()),
    }
    Ok(())
}

async fn get(common: &Common, path: &Path) -> Result<(), Fail> {
    let target = place::resolve(common, path)?;
    let info = place::fetch(&target).await?;
    let known = classes(&target.masters).await?;
    let id = info.attr.map(|attr| attr.class).unwrap_or_default();
    let own = known.classes.iter().find(|class| class.id == id);
    let inherited = own.is_none() || id == 0;
    let Some(class) = own.or(known.default_class.as_ref()) else {
        return Err(Fail::new(format!("{}: class {id} is unknown", path.display())));
    };
    if common.json {
        let mut value = class_json(class, inherited);
        value["inherited"] = inherited.into();
        out::json(&value);
    } else {
        let mark = if inherited { " (the cluster's default)" } else { "" };
        say!("{}: {} {}{mark}", path.display(), class.name, layout_text(class.layout.as_ref()));
    }
    Ok(())
}

async fn create(masters: &Masters, name: &str, layout: pb::Layout) -> Result<u64, Fail> {
    let ask = |mut client: Client| {
        let request = pb::CreateClassRequest { name: name.to_owned(), layout: Some(layout) };
        async move { client.create_class(request).await }
    };
    Ok(masters.call(ask).await?.id)
}

async fn classes(masters: &Masters) -> Result<pb::ListClassesReply, Fail> {
    let ask =
        |mut client: Client| async move { client.list_classes(pb::ListClassesRequest {}).await };
    masters.call(ask).await
}

fn class_json(class: &pb::StorageClass, default: bool) -> Value {
    let layout = class.layout.unwrap_or_default();
    json!({
        "id": class.id,
        "name": class.name,
        "data": layout.data,
        "parity": layout.parity,
        "default": default,
    })
}

fn layout_text(layout: Option<&pb::Layout>) -> String {
    layout.map(|layout| format!("{}+{}", layout.data, layout.parity)).unwrap_or_default()
}

/// `4+2`.
pub(super) fn parse(text: &str) -> Result<pb::Layout, Fail> {
    let bad = || Fail::usage(format!("`{text}` is neither a class nor a layout like 1+1 or 4+2"));
    let (data, parity) = text.split_once('+').ok_or_else(bad)?;
    let data: u32 = data.trim().parse().map_err(|_| bad())?;
    let parity: u32 = parity.trim().parse().map_err(|_| bad())?;
    Layout::new(data, parity).map_err(|e| Fail::usage(format!("{text}: {e}")))?;
    Ok(pb::Layout { data, parity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_two_numbers_that_fit() {
        assert_eq!(parse("4+2").unwrap(), pb::Layout { data: 4, parity: 2 });
        for bad in ["", "4", "4+", "+2", "a+b", "0+1", "200+100"] {
            assert_eq!(parse(bad).unwrap_err().code(), 2, "{bad}");
        }
    }
}
