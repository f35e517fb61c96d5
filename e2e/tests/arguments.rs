//! What the user types reaches pi as it is, and pi's answer and status come back as they are.

use anyhow::Result;
use e2e::{SOON, World};

#[test]
fn every_word_reaches_pi_unchanged() -> Result<()> {
    let world = World::new("tools")?;
    for (index, prompt) in [
        "two  spaces and a tab\there",
        "it's \"quoted\" `and` $HOME ${X} $(id) \\ back",
        "first line\nsecond line\n\n  fourth",
        "größe 日本 🦀",
        "* ? [a] {b,c} ; & | < > # !",
    ]
    .into_iter()
    .enumerate()
    {
        let ran = world.pi_docker().args(["-p", prompt]).run()?.expect(0)?;
        assert_eq!(ran.stdout.trim_end_matches('\n'), prompt);
        assert_eq!(world.internet.model()?[index].body["text"], prompt);
    }
    // pi's own way to say that a prompt begins with a dash; ours ends before it.
    let ran = world.pi_docker().args(["-p", "--", "--rebuild the house"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim_end(), "--rebuild the house");
    Ok(())
}

#[test]
fn a_word_that_is_ours_goes_to_pi_after_a_dash_dash() -> Result<()> {
    let world = World::new("tools")?;
    let ran = world.pi_docker().args(["--", "--version"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "1.5.2");
    let ran = world.bare_pi_docker().arg("--version").run()?.expect(0)?;
    assert!(ran.stdout.starts_with("pi-docker "), "{}", ran.stdout);
    Ok(())
}

#[test]
fn pi_starts_in_the_folder_the_user_is_in() -> Result<()> {
    let world = World::new("tools")?;
    let docs = world.repo.join("docs");
    let ran = world.pi_docker().within(&docs).args(["-p", "sh: pwd"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "/workspace/docs");
    let ran = world.pi_docker().within(&docs).args(["-p", "@notes.md", "What does it say?"]).run()?.expect(0)?;
    assert!(ran.stdout.contains("Notes.") && ran.stdout.contains("What does it say?"), "{}", ran.stdout);
    Ok(())
}

#[test]
fn what_is_piped_in_is_part_of_the_prompt() -> Result<()> {
    let world = World::new("tools")?;
    let ran = world.pi_docker().args(["-p", "Review this."]).input("a diff\nof two lines\n").run()?.expect(0)?;
    assert!(ran.stdout.contains("a diff\nof two lines") && ran.stdout.contains("Review this."), "{}", ran.stdout);
    // An input that has ended before pi runs, and one that is longer than a pipe holds.
    let ran = world.pi_docker().args(["-p", "hello"]).input("").run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    let long = "a line of a long input\n".repeat(20_000);
    let ran = world.pi_docker().args(["-p", "Review this."]).input(long.clone()).run()?.expect(0)?;
    assert!(ran.stdout.contains(long.trim_end()), "{} bytes came back", ran.stdout.len());
    Ok(())
}

#[test]
fn at_a_terminal_the_answer_can_be_piped_into_another_program() -> Result<()> {
    let world = World::new("tools")?;
    let mut terminal = world.pi_docker().args(["-p", "hello through a pipe"]).piped().start_on_terminal()?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0), "{}", terminal.screen());
    terminal.expect("hello through a pipe", SOON)?;
    assert_eq!(world.internet.model()?.len(), 1);
    // Without a prompt there is nothing that pi could do then.
    let mut terminal = world.pi_docker().piped().start_on_terminal()?;
    terminal.expect("no terminal, no prompt", SOON)?;
    terminal.finish(SOON)?;
    assert_eq!(world.internet.model()?.len(), 1);
    Ok(())
}

#[test]
fn pis_exit_status_comes_back() -> Result<()> {
    let world = World::new("tools")?;
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    world.pi_docker().args(["-p", "hello"]).env("ANTHROPIC_API_KEY", "sk-ant-wrong").run()?.expect(1)?;
    world.pi_docker().args(["-p", "sh: kill -KILL $PPID"]).run()?.expect(137)?;
    Ok(())
}
