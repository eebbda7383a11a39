//! What is measured: so many tokens of a prompt, so many written, after so many, in so many sequences.

use std::fmt;

/// One test. Its name is how it is written: `pp512`, `tg64`, `pp512+tg64`, `tg64@b8`, `tg64@b8@d4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens run in large steps.
    pub prompt: usize,
    /// Tokens then run one a step, in each sequence.
    pub generated: usize,
    /// Tokens in the context before anything is measured.
    pub depth: usize,
    /// Sequences that write at once.
    pub batch: usize,
}

impl Workload {
    /// Tokens that are run while time is taken.
    pub fn n_tokens(&self) -> usize {
        self.prompt.saturating_add(self.generated).saturating_mul(self.batch)
    }

    /// Positions of one sequence.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.prompt).saturating_add(self.generated)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.prompt, self.generated) {
            (prompt, 0) => write!(f, "pp{prompt}"),
            (0, generated) => write!(f, "tg{generated}"),
            (prompt, generated) => write!(f, "pp{prompt}+tg{generated}"),
        }?;
        if self.batch > 1 {
            write!(f, "@b{}", self.batch)?;
        }
        if self.depth > 0 {
            write!(f, "@d{}", self.depth)?;
        }
        Ok(())
    }
}

/// The lists of which every combination is a test.
#[derive(Clone, Debug, Default)]
pub struct Lists<'a> {
    /// Lengths of prompts.
    pub prompts: &'a [u32],
    /// Lengths of what is written.
    pub generated: &'a [u32],
    /// Prompt and writing in one.
    pub both: &'a [(u32, u32)],
    /// Contexts already filled.
    pub depths: &'a [u32],
    /// Sequences that write at once; only where nothing but writing is measured.
    pub batches: &'a [u32],
}

impl Lists<'_> {
    /// All combinations, each once: by depth, prompts first.
    pub fn workloads(&self) -> Vec<Workload> {
        let mut all: Vec<Workload> = Vec::new();
        let mut add = |prompt: u32, generated: u32, depth: u32, batch: u32| {
            let [prompt, generated, depth, batch] = [prompt, generated, depth, batch].map(|n| n as usize);
            let workload = Workload { prompt, generated, depth, batch };
            if !all.contains(&workload) {
                all.push(workload);
            }
        };
        for &depth in self.depths {
            for &prompt in self.prompts {
                add(prompt, 0, depth, 1);
            }
            for &generated in self.generated {
                for &batch in self.batches {
                    add(0, generated, depth, batch);
                }
            }
            for &(prompt, generated) in self.both {
                add(prompt, generated, depth, 1);
            }
        }
        all
    }
}

/// Reads `512,64`: tokens of the prompt and tokens written.
pub fn parse_both(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|&n| n > 0);
    text.split_once(',')
        .and_then(|(prompt, generated)| Some((number(prompt)?, number(generated)?)))
        .ok_or_else(|| "expected the tokens of the prompt and those written, such as 512,64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lists: &Lists<'_>) -> Vec<String> {
        lists.workloads().iter().map(Workload::to_string).collect()
    }

    #[test]
    fn every_combination_is_one_test_and_batches_are_for_writing_only() {
        let lists =
            Lists { prompts: &[512, 8], generated: &[64], both: &[(128, 16)], depths: &[0, 4096], batches: &[1, 8, 8] };
        let shallow = ["pp512", "pp8", "tg64", "tg64@b8", "pp128+tg16"];
        let deep = ["pp512@d4096", "pp8@d4096", "tg64@d4096", "tg64@b8@d4096", "pp128+tg16@d4096"];
        assert_eq!(names(&lists), [shallow, deep].concat());
    }

    #[test]
    fn tokens_and_positions_are_counted() {
        let workload = Workload { prompt: 0, generated: 64, depth: 100, batch: 8 };
        assert_eq!((workload.n_tokens(), workload.context()), (512, 164));
    }

    #[test]
    fn pairs_are_two_numbers_above_zero() {
        assert_eq!(parse_both("512,64"), Ok((512, 64)));
        for wrong in ["512", "512,0", "0,1", "1,2,3", "a,b", ",", "-1,2"] {
            assert!(parse_both(wrong).is_err(), "{wrong}");
        }
    }
}
