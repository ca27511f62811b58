//! What was found, as text: one block for each volume, one line for each copy.

use meshstor_controller::recover::{Picture, VolumePicture};
use meshstor_plan::recover::{CopyReport, Outcome, Proposal, Unseen, list_of_copies};
use std::fmt::Write;

const HEAD: [&str; 6] = ["COPY", "NODE", "DRIVE", "EPOCH", "EVENTS", "SET AT ITS FENCE"];

/// The chosen volumes, and whatever hides others.
pub fn render(picture: &Picture, chosen: &[&VolumePicture]) -> String {
    let mut text = String::new();
    for volume in chosen {
        let _never_fails = render_volume(&mut text, volume);
    }
    for line in &picture.unreadable {
        let _never_fails = writeln!(text, "left out: {line}");
    }
    for drive in &picture.silent {
        let _never_fails = writeln!(text, "no answer from {drive}: volumes that lie only there are not shown");
    }
    text
}

fn render_volume(text: &mut String, volume: &VolumePicture) -> std::fmt::Result {
    let finding = &volume.finding;
    let recorded = finding.recorded.map_or("no object".to_string(), |epoch| format!("recorded epoch {epoch}"));
    writeln!(text, "{} ({}): {recorded}, highest epoch seen {}", volume.name, volume.volume, finding.seen)?;
    let mut rows: Vec<([String; 6], String)> = vec![(HEAD.map(String::from), "VERDICT".into())];
    let judged = volume.copies.iter().zip(&finding.verdicts);
    rows.extend(judged.map(|(copy, verdict)| (cells(copy), format!("{verdict}{}", in_use(copy)))));
    rows.extend(finding.unseen.iter().map(|(who, newer)| (unseen(volume, who), newer.to_string())));
    let width = |column: usize| rows.iter().map(|(cells, _)| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    for (cells, verdict) in &rows {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(text, "  {}  {verdict}", padded.collect::<Vec<_>>().join("  "))?;
    }
    match (&volume.obstacle, &finding.outcome) {
        (Some(obstacle), _) => writeln!(text, "  blocked: {obstacle}\n"),
        (None, Outcome::Sound) => writeln!(text, "  sound: the record is as new as the drives that answer\n"),
        (None, Outcome::Blocked(why)) => writeln!(text, "  blocked: {why}\n"),
        (None, Outcome::Write(proposal)) => proposed(text, proposal),
    }
}

fn proposed(text: &mut String, proposal: &Proposal) -> std::fmt::Result {
    writeln!(text, "  proposed: epoch {}, in sync {}", proposal.epoch, list_of_copies(&proposal.in_sync))?;
    let given_up: Vec<String> = proposal.given_up.iter().map(ToString::to_string).collect();
    if given_up.is_empty() && proposal.overruled.is_empty() {
        return writeln!(text, "  nothing that was acknowledged is lost\n");
    }
    if !given_up.is_empty() {
        writeln!(text, "  LOST, as accepted: whatever only {} had", given_up.join(", "))?;
    }
    if !proposal.overruled.is_empty() {
        writeln!(text, "  LOST, as accepted: what {} wrote on its own", list_of_copies(&proposal.overruled))?;
    }
    writeln!(text)
}

fn cells(copy: &CopyReport) -> [String; 6] {
    [
        copy.record.replica.to_string(),
        copy.node.0.clone(),
        copy.drive.0.clone(),
        copy.record.epoch.to_string(),
        copy.member.as_ref().map_or("-".to_string(), |member| member.events.to_string()),
        list_of_copies(&copy.record.in_sync),
    ]
}

fn unseen(volume: &VolumePicture, who: &Unseen) -> [String; 6] {
    let node = match who {
        Unseen::Copy(replica) => volume.node_of(*replica).unwrap_or("?").to_string(),
        Unseen::Device(_) => "?".to_string(),
    };
    [who.to_string(), node, "?".into(), "?".into(), "?".into(), "?".into()]
}

fn in_use(copy: &CopyReport) -> String {
    match copy.holders.is_empty() {
        true => String::new(),
        false => format!(" (in use by {})", copy.holders.iter().cloned().collect::<Vec<_>>().join(", ")),
    }
}
