//! How a program ends when it cannot go on: one line and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Why a program stops: printed as one line. 2 is the exit code of a wrong command line or configuration,
/// 1 of everything else.
#[derive(Debug)]
pub struct Fail {
    code: u8,
    line: String,
}

impl Fail {
    /// A wrong command line or configuration.
    pub fn usage(line: impl fmt::Display) -> Fail {
        Fail { code: 2, line: one_line(&line.to_string()) }
    }

    /// Something that went wrong while doing what was asked.
    pub fn new(line: impl fmt::Display) -> Fail {
        Fail { code: 1, line: one_line(&line.to_string()) }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(": ")
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Fail {}

/// Turns a program's outcome into its exit code, saying what failed on standard error.
pub fn exit(program: &str, outcome: Result<(), Fail>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            eprintln!("{program}: {fail}");
            ExitCode::from(fail.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(Fail::new("first\n  second\r\n\n").to_string(), "first: second");
        assert_eq!((Fail::new("").code(), Fail::usage("").code()), (1, 2));
    }
}
