//! What a kernel takes, read from its own declaration, so that a launch can be checked against it.
//!
//! Understood is `extern "C" __global__ void NAME(PARAMETERS)` with `__launch_bounds__` before or after `void`, and
//! parameters that are pointers, `u32`, `u64`, `float` or `double`. Nothing here knows a device.

use super::memory::Element;

/// Most parameters a kernel may have: a launch keeps their values on the stack.
pub const MOST_PARAMETERS: usize = 32;

/// A kernel as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    /// The name it is launched by.
    pub name: &'a str,
    /// What it takes, in order.
    pub parameters: Vec<Parameter<'a>>,
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name in the declaration.
    pub name: &'a str,
    /// What it holds.
    pub kind: Kind,
}

/// What a parameter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The address of device memory.
    Pointer {
        /// What stands there; none is a struct of the kernels' own, which any buffer may hold.
        element: Option<Element>,
        /// Whether the kernel may write there.
        mutable: bool,
    },
    /// A 32-bit count.
    U32,
    /// A 64-bit count or offset.
    U64,
    /// A 32-bit float.
    F32,
    /// A 64-bit float.
    F64,
}

/// The kernels declared in a source, in order; an error is what cannot be understood.
pub fn signatures(source: &str) -> Result<Vec<Signature<'_>>, String> {
    let mut found = Vec::new();
    let mut words = Words { rest: source };
    while let Some(word) = words.next() {
        if word == "__global__" {
            found.push(signature(&mut words)?);
        }
    }
    Ok(found)
}

/// The declaration that follows `__global__`.
fn signature<'a>(words: &mut Words<'a>) -> Result<Signature<'a>, String> {
    let mut name = "";
    loop {
        match words.next() {
            Some("__launch_bounds__") => skip_parentheses(words)?,
            Some("(") => break,
            Some(word) if is_name(word) => name = word,
            Some(word) => return Err(format!("`{word}` where a kernel's name was expected")),
            None => return Err("a kernel's declaration has no end".to_owned()),
        }
    }
    if name.is_empty() || name == "void" {
        return Err("a kernel has no name".to_owned());
    }
    let mut parameters = Vec::new();
    let mut parts: Vec<&str> = Vec::new();
    loop {
        match words.next() {
            Some(end @ ("," | ")")) => {
                if !parts.is_empty() {
                    parameters
                        .push(parameter(&parts).map_err(|problem| format!("kernel {name}: {problem}"))?);
                }
                parts.clear();
                if end == ")" {
                    break;
                }
            }
            Some(word) => parts.push(word),
            None => return Err(format!("kernel {name}: its parameters have no end")),
        }
    }
    match parameters.len() {
        0..=MOST_PARAMETERS => Ok(Signature { name, parameters }),
        count => Err(format!("kernel {name}: {count} parameters, at most {MOST_PARAMETERS} are passed")),
    }
}

/// A parameter from its words.
fn parameter<'a>(parts: &[&'a str]) -> Result<Parameter<'a>, String> {
    let told = || format!("the parameter `{}` is not understood", parts.join(" "));
    let mut kept = parts.iter().copied().filter(|word| !matches!(*word, "__restrict__" | "struct"));
    let name = kept.next_back().filter(|word| is_name(word)).ok_or_else(told)?;
    let (mut constant, mut stars, mut kind) = (false, 0, None);
    for word in kept {
        match word {
            // Only what stands before the star is about what is pointed at.
            "const" => constant |= stars == 0,
            "*" => stars += 1,
            word if kind.is_none() && is_name(word) => kind = Some(word),
            _ => return Err(told()),
        }
    }
    let kind = match (kind.ok_or_else(told)?, stars) {
        ("u32", 0) => Kind::U32,
        ("u64", 0) => Kind::U64,
        ("float", 0) => Kind::F32,
        ("double", 0) => Kind::F64,
        (pointed, 1) => {
            let element = match pointed {
                "value" => Some(Element::Value),
                "float" => Some(Element::F32),
                "double" => Some(Element::F64),
                "u32" | "i32" => Some(Element::U32),
                "u64" | "i64" => Some(Element::U64),
                _ => None,
            };
            Kind::Pointer { element, mutable: !constant }
        }
        _ => return Err(told()),
    };
    Ok(Parameter { name, kind })
}

/// Passes a `( ... )`.
fn skip_parentheses(words: &mut Words) -> Result<(), String> {
    let mut depth = 0usize;
    for word in words {
        match word {
            "(" => depth += 1,
            ")" if depth <= 1 => return Ok(()),
            ")" => depth -= 1,
            _ => {}
        }
    }
    Err("__launch_bounds__ has no end".to_owned())
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The words of a C++ source: names and numbers, or single signs; comments are passed over.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start();
            let comment_end = if self.rest.starts_with("//") {
                self.rest.find('\n')
            } else if self.rest.starts_with("/*") {
                self.rest.find("*/").map(|at| at + 2)
            } else {
                break;
            };
            self.rest = comment_end.map_or("", |at| &self.rest[at..]);
        }
        let first = self.rest.chars().next()?;
        let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = match in_word(first) {
            true => self.rest.find(|c| !in_word(c)).unwrap_or(self.rest.len()),
            false => first.len_utf8(),
        };
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(element: Option<Element>, mutable: bool) -> Kind {
        Kind::Pointer { element, mutable }
    }

    #[test]
    fn declarations_are_read() {
        let source = r#"
            // __global__ void not_this(u32 a)
            /* __global__ void nor_this(u32 a) */
            __device__ float helper(float x) { return x; }
            extern "C" __global__ void __launch_bounds__(256, (1 + 1)) forward(
                const value* __restrict__ x, /* rows */ float *out, u32 rows,
                const clock_t* clock, u64 offset, float eps, double scale, u32* const __restrict__ ids)
            { }
            extern "C" __global__ __launch_bounds__(32) void nothing() {}
        "#;
        let found = signatures(source).expect("sound");
        assert_eq!(found.iter().map(|s| s.name).collect::<Vec<_>>(), ["forward", "nothing"]);
        assert_eq!(found[1].parameters, []);
        let kinds: Vec<_> = found[0].parameters.iter().map(|p| (p.name, p.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("x", pointer(Some(Element::Value), false)),
                ("out", pointer(Some(Element::F32), true)),
                ("rows", Kind::U32),
                ("clock", pointer(None, false)),
                ("offset", Kind::U64),
                ("eps", Kind::F32),
                ("scale", Kind::F64),
                ("ids", pointer(Some(Element::U32), true)),
            ]
        );
    }

    #[test]
    fn what_cannot_be_passed_is_refused() {
        for declaration in [
            "__global__ void k(int rows)",
            "__global__ void k(float** x)",
            "__global__ void k(float& x)",
            "__global__ void k(unsigned int rows)",
            "__global__ void k(float)",
            "__global__ void (u32 rows)",
            "__global__ void k(u32 rows",
            "__global__ void __launch_bounds__(3",
            "__global__",
        ] {
            assert!(signatures(declaration).is_err(), "{declaration}");
        }
        let many: Vec<String> = (0..=MOST_PARAMETERS).map(|i| format!("u32 p{i}")).collect();
        assert!(signatures(&format!("__global__ void k({})", many.join(", "))).is_err());
    }
}
