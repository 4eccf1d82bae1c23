//! Owns the views of Rust code that rules share: paths, attributes, definitions, test lines; judges nothing.
//!
//! Tokens see into the bodies of macros, the syntax tree does not; so whatever a token can tell is read from tokens.

use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A file of Rust, parsed.
pub(super) struct Rust {
    pub(super) tokens: TokenStream,
    pub(super) syntax: syn::File,
    test_lines: Vec<RangeInclusive<usize>>,
    test_modules: Vec<String>,
}

impl Rust {
    /// The error carries the line.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let tokens: TokenStream =
            text.parse().map_err(|error: proc_macro2::LexError| (error.span().start().line, error.to_string()))?;
        let syntax: syn::File =
            syn::parse2(tokens.clone()).map_err(|error: syn::Error| (error.span().start().line, error.to_string()))?;
        let mut rust = Self { tokens, syntax, test_lines: Vec::new(), test_modules: Vec::new() };
        rust.find_tests(&rust.tokens.clone());
        Ok(rust)
    }

    pub(super) fn is_for_tests(&self, line: usize) -> bool {
        self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// Names of modules declared as `#[cfg(test)] mod name;`.
    pub(super) fn test_modules(&self) -> &[String] {
        &self.test_modules
    }

    /// All paths outside strings and comments, groups of `use` written out.
    pub(super) fn paths(&self) -> Vec<PathUse> {
        let mut paths = Vec::new();
        collect_paths(self.tokens.clone(), &[], &mut paths);
        paths
    }

    /// All attributes, those inside macros too.
    pub(super) fn attributes(&self) -> Vec<Attribute> {
        let mut attributes = Vec::new();
        collect_attributes(self.tokens.clone(), &mut attributes);
        attributes
    }

    /// Names of tests and their lines, those inside macros too.
    pub(super) fn tests(&self) -> Vec<(String, usize)> {
        let mut tests = Vec::new();
        collect_tests(self.tokens.clone(), &mut tests);
        tests
    }

    /// Names of macros called and their lines, those called inside macros too.
    pub(super) fn macro_calls(&self) -> Vec<(String, usize)> {
        let mut calls = Vec::new();
        collect_macro_calls(self.tokens.clone(), &mut calls);
        calls
    }

    /// All names that the code gives.
    pub(super) fn definitions(&self) -> Vec<Definition> {
        let mut definitions = Definitions::default();
        definitions.visit_file(&self.syntax);
        definitions.found
    }

    /// Notes the lines of items that carry `#[test]`, `#[cfg(test)]` or `#[cfg(all(test, …))]`.
    fn find_tests(&mut self, stream: &TokenStream) {
        let trees: Vec<TokenTree> = stream.clone().into_iter().collect();
        let mut index = 0;
        while index < trees.len() {
            if let Some((attribute, after)) = attribute_at(&trees, index)
                && attribute.is_for_tests()
            {
                let end = if attribute.is_inner { trees.len() } else { end_of_item(&trees, after) };
                let last_line = trees[end - 1].span().end().line;
                self.test_lines.push(attribute.line..=last_line);
                self.test_modules.extend(module_declared_in(&trees[after..end]));
                index = end;
                continue;
            }
            if let TokenTree::Group(group) = &trees[index] {
                self.find_tests(&group.stream());
            }
            index += 1;
        }
    }
}

/// One path as it stands in the code: `std::fs::File`, or a single word.
#[derive(Debug)]
pub(super) struct PathUse {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
    /// A method or a field: `x.unwrap`.
    pub(super) is_after_dot: bool,
}

impl PathUse {
    /// Whether `wanted` (`thread::sleep`) is a run of this path's segments.
    pub(super) fn contains(&self, wanted: &str) -> bool {
        let wanted: Vec<&str> = wanted.split("::").collect();
        self.segments.windows(wanted.len()).any(|window| window == wanted)
    }
}

/// The inside of `#[…]` or `#![…]`.
pub(super) struct Attribute {
    pub(super) line: usize,
    pub(super) tokens: Vec<TokenTree>,
    /// `#![…]`: binds all that it stands in.
    pub(super) is_inner: bool,
}

impl Attribute {
    fn is_for_tests(&self) -> bool {
        if self.is_test() {
            return true;
        }
        let [TokenTree::Ident(name), TokenTree::Group(condition)] = self.tokens.as_slice() else { return false };
        name == "cfg" && condition_needs_test(&condition.stream())
    }

    /// `#[test]`, `#[tokio::test]`, `#[tokio::test(…)]`.
    pub(super) fn is_test(&self) -> bool {
        let path: Vec<&TokenTree> =
            self.tokens.iter().take_while(|tree| !matches!(tree, TokenTree::Group(_))).collect();
        path.last().is_some_and(|last| last.to_string() == "test") && self.tokens.len() <= path.len() + 1
    }
}

fn condition_needs_test(condition: &TokenStream) -> bool {
    let trees: Vec<TokenTree> = condition.clone().into_iter().collect();
    match trees.as_slice() {
        [TokenTree::Ident(name)] => name == "test",
        [TokenTree::Ident(name), TokenTree::Group(all)] if name == "all" => {
            all.stream().into_iter().any(|tree| matches!(&tree, TokenTree::Ident(name) if name == "test"))
        }
        _ => false,
    }
}

/// The attribute that starts at `index`, and the index after it.
fn attribute_at(trees: &[TokenTree], index: usize) -> Option<(Attribute, usize)> {
    let is_punct =
        |at: usize, wanted: char| matches!(trees.get(at), Some(TokenTree::Punct(p)) if p.as_char() == wanted);
    if !is_punct(index, '#') {
        return None;
    }
    let is_inner = is_punct(index + 1, '!');
    let at = index + 1 + usize::from(is_inner);
    match trees.get(at) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            let line = trees[index].span().start().line;
            Some((Attribute { line, tokens: group.stream().into_iter().collect(), is_inner }, at + 1))
        }
        _ => None,
    }
}

/// The index after the item (or field, or statement) that starts at `index`: behind its braces, `;` or `,`.
fn end_of_item(trees: &[TokenTree], index: usize) -> usize {
    const ITEMS: [&str; 11] =
        ["const", "enum", "fn", "impl", "macro_rules", "mod", "static", "struct", "trait", "type", "use"];
    let mut is_item = false;
    for (at, tree) in trees.iter().enumerate().skip(index) {
        match tree {
            TokenTree::Ident(name) => is_item |= ITEMS.contains(&name.to_string().as_str()),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return at + 1,
            TokenTree::Punct(p) if p.as_char() == ';' || (p.as_char() == ',' && !is_item) => return at + 1,
            _ => {}
        }
    }
    trees.len()
}

/// `name` for an item `… mod name;`.
fn module_declared_in(item: &[TokenTree]) -> Option<String> {
    match item {
        [.., TokenTree::Ident(keyword), TokenTree::Ident(name), TokenTree::Punct(end)] => {
            (keyword == "mod" && end.as_char() == ';').then(|| name.to_string())
        }
        _ => None,
    }
}

fn collect_attributes(stream: TokenStream, attributes: &mut Vec<Attribute>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    for (index, tree) in trees.iter().enumerate() {
        if let Some((attribute, _)) = attribute_at(&trees, index) {
            attributes.push(attribute);
        }
        if let TokenTree::Group(group) = tree {
            collect_attributes(group.stream(), attributes);
        }
    }
}

fn collect_tests(stream: TokenStream, tests: &mut Vec<(String, usize)>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    for (index, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            collect_tests(group.stream(), tests);
        }
        let Some((attribute, after)) = attribute_at(&trees, index) else { continue };
        let mut rest = trees[after..].iter().skip_while(|tree| tree.to_string() != "fn").skip(1);
        if let Some(TokenTree::Ident(name)) = rest.next().filter(|_| attribute.is_test()) {
            tests.push((name.to_string(), name.span().start().line));
        }
    }
}

fn collect_macro_calls(stream: TokenStream, calls: &mut Vec<(String, usize)>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    for window in trees.windows(3) {
        if let [TokenTree::Ident(name), TokenTree::Punct(bang), TokenTree::Group(_)] = window
            && bang.as_char() == '!'
        {
            calls.push((name.to_string(), name.span().start().line));
        }
    }
    for tree in trees {
        if let TokenTree::Group(group) = tree {
            collect_macro_calls(group.stream(), calls);
        }
    }
}

/// `prefix` is what stands before the braces of `use std::{…}`.
fn collect_paths(stream: TokenStream, prefix: &[String], paths: &mut Vec<PathUse>) {
    let mut open: Option<PathUse> = None;
    let mut is_joined = false;
    let mut is_after_dot = false;
    for tree in stream {
        match tree {
            TokenTree::Ident(name) => {
                let line = name.span().start().line;
                if !is_joined {
                    paths.extend(open.take());
                }
                let path = open.get_or_insert_with(|| PathUse { line, segments: prefix.to_vec(), is_after_dot });
                path.segments.push(name.to_string());
                path.line = line;
                (is_joined, is_after_dot) = (false, false);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => {
                is_joined = punct.spacing() == Spacing::Alone && is_joined || punct.spacing() == Spacing::Joint;
            }
            TokenTree::Group(group) => {
                let stem = open.take();
                let is_list = is_joined && group.delimiter() == Delimiter::Brace;
                let inner = stem.as_ref().filter(|_| is_list).map_or(&[][..], |stem| stem.segments.as_slice());
                collect_paths(group.stream(), inner, paths);
                paths.extend(stem.filter(|_| !is_list));
                (is_joined, is_after_dot) = (false, false);
            }
            other => {
                paths.extend(open.take());
                is_joined = false;
                is_after_dot = matches!(&other, TokenTree::Punct(punct) if punct.as_char() == '.');
            }
        }
    }
    paths.extend(open);
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Type,
    Variant,
    Module,
    Function,
    /// A constant, a static, a field.
    Value,
    /// A binding in a function.
    Variable,
}

/// A name and where it is given. Names that a foreign trait dictates are left out.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) line: usize,
    /// The last line of a function with a body, else `line`.
    pub(super) end_line: usize,
    /// Implements a trait, which chose the name.
    pub(super) is_dictated: bool,
}

#[derive(Default)]
struct Definitions {
    found: Vec<Definition>,
    is_in_trait_impl: bool,
}

impl Definitions {
    fn add(&mut self, kind: Kind, name: &syn::Ident) {
        let line = name.span().start().line;
        self.found.push(Definition { kind, name: name.to_string(), line, end_line: line, is_dictated: false });
    }

    fn add_function(&mut self, signature: &syn::Signature, block: Option<&syn::Block>, is_dictated: bool) {
        let line = signature.span().start().line;
        let end_line = block.map_or(line, |block| block.brace_token.span.close().end().line);
        self.found.push(Definition {
            kind: Kind::Function,
            name: signature.ident.to_string(),
            line,
            end_line,
            is_dictated,
        });
    }
}

impl<'ast> Visit<'ast> for Definitions {
    fn visit_item_struct(&mut self, node: &'ast syn::ItemStruct) {
        self.add(Kind::Type, &node.ident);
        visit::visit_item_struct(self, node);
    }

    fn visit_item_enum(&mut self, node: &'ast syn::ItemEnum) {
        self.add(Kind::Type, &node.ident);
        visit::visit_item_enum(self, node);
    }

    fn visit_item_union(&mut self, node: &'ast syn::ItemUnion) {
        self.add(Kind::Type, &node.ident);
        visit::visit_item_union(self, node);
    }

    fn visit_item_trait(&mut self, node: &'ast syn::ItemTrait) {
        self.add(Kind::Type, &node.ident);
        visit::visit_item_trait(self, node);
    }

    fn visit_item_type(&mut self, node: &'ast syn::ItemType) {
        self.add(Kind::Type, &node.ident);
        visit::visit_item_type(self, node);
    }

    fn visit_variant(&mut self, node: &'ast syn::Variant) {
        self.add(Kind::Variant, &node.ident);
        visit::visit_variant(self, node);
    }

    fn visit_item_mod(&mut self, node: &'ast syn::ItemMod) {
        self.add(Kind::Module, &node.ident);
        visit::visit_item_mod(self, node);
    }

    fn visit_item_const(&mut self, node: &'ast syn::ItemConst) {
        self.add(Kind::Value, &node.ident);
        visit::visit_item_const(self, node);
    }

    fn visit_item_static(&mut self, node: &'ast syn::ItemStatic) {
        self.add(Kind::Value, &node.ident);
        visit::visit_item_static(self, node);
    }

    fn visit_field(&mut self, node: &'ast syn::Field) {
        if let Some(name) = &node.ident {
            self.add(Kind::Value, name);
        }
        visit::visit_field(self, node);
    }

    fn visit_pat_ident(&mut self, node: &'ast syn::PatIdent) {
        self.add(Kind::Variable, &node.ident);
        visit::visit_pat_ident(self, node);
    }

    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.add_function(&node.sig, Some(&node.block), false);
        visit::visit_item_fn(self, node);
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        self.add_function(&node.sig, node.default.as_ref(), false);
        visit::visit_trait_item_fn(self, node);
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.add_function(&node.sig, Some(&node.block), self.is_in_trait_impl);
        visit::visit_impl_item_fn(self, node);
    }

    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        let outer = std::mem::replace(&mut self.is_in_trait_impl, node.trait_.is_some());
        visit::visit_item_impl(self, node);
        self.is_in_trait_impl = outer;
    }
}

/// `core/src/log` for `core/src/log.rs` and `core/src/log/mod.rs`; `core/src` for `core/src/lib.rs`.
pub(super) fn module_path(path: &str) -> &str {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    ["/mod", "/lib", "/main"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(stem)
}
