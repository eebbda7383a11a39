//! What begins with a slash: commands to the program instead of messages to the model.

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'t> {
    Help,
    Reset,
    /// Shows the system message, or sets it.
    System(Option<&'t str>),
    Save(&'t str),
    Stats,
    Quit,
}

/// What `/help` says.
pub const HELP: &str = "\
/reset           forget the conversation
/system TEXT     set the system message; without a text, show it
/save FILE       write the conversation to a JSON file
/stats           show speed and context use
/help            show this
/quit            leave (also Ctrl-D)

Ctrl-C stops an answer. A message goes on in the next line after a backslash, or between \"\"\" and \"\"\".
A message that begins with a slash is written with two.";

/// The command of a line that begins with a slash; `None` for a message, an error for what is no command.
pub fn parse(line: &str) -> Result<Option<Command<'_>>, String> {
    let line = line.trim();
    let Some(rest) = line.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else { return Ok(None) };
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = argument.trim();
    let command = match name {
        "help" | "?" => Command::Help,
        "reset" | "clear" => Command::Reset,
        "system" => return Ok(Some(Command::System((!argument.is_empty()).then_some(argument)))),
        "save" if argument.is_empty() => return Err("/save needs the name of a file".to_owned()),
        "save" => return Ok(Some(Command::Save(argument))),
        "stats" => Command::Stats,
        "quit" | "exit" | "bye" => Command::Quit,
        _ => return Err(format!("there is no command /{name}; /help lists them")),
    };
    if argument.is_empty() { Ok(Some(command)) } else { Err(format!("/{name} takes nothing after it")) }
}

/// The message of a line that is no command.
pub fn message(line: &str) -> &str {
    if line.starts_with("//") { &line[1..] } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_begin_with_one_slash() {
        assert_eq!(parse("/reset"), Ok(Some(Command::Reset)));
        assert_eq!(parse("  /system be brief "), Ok(Some(Command::System(Some("be brief")))));
        assert_eq!(parse("/system"), Ok(Some(Command::System(None))));
        assert_eq!(parse("/save a b.json"), Ok(Some(Command::Save("a b.json"))));
        assert_eq!(parse("hello /reset"), Ok(None));
        assert_eq!((parse("//etc is a folder"), message("//etc is a folder")), (Ok(None), "/etc is a folder"));
    }

    #[test]
    fn what_is_no_command_is_said_and_not_sent() {
        assert_eq!(parse("/rest"), Err("there is no command /rest; /help lists them".to_owned()));
        assert_eq!(parse("/save"), Err("/save needs the name of a file".to_owned()));
        assert_eq!(parse("/reset now"), Err("/reset takes nothing after it".to_owned()));
    }
}
