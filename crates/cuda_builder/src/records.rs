//! Records: what `#[kernel]`, `#[arguments]` and `#[host]` leave in the PTX, one comment line each.
//!
//! ```text
//! //#kernel scale threads=256 min_blocks=2 cluster=1 wgmma_n=0 overlap=0 unroll=1 shared=0 (rows : Scale)
//! //#arguments pub struct Scale { pub x : * const f32 , pub rounding : Code < Rounding > , pub n : u32 , }
//! //#host #[repr (u32)] pub enum Rounding { Nearest = 0 , Zero = 1 , }
//! ```

use std::cmp::Reverse;

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::punctuated::Punctuated;
use syn::{Attribute, Field, FnArg, GenericArgument, Item, Pat, PathArguments, Token, Type};

use crate::{Error, KernelInfo};

/// The lines that begin so are records.
const KERNEL: &str = "//#kernel ";
const ARGUMENTS: &str = "//#arguments ";
const HOST: &str = "//#host ";

/// All that a device crate tells the host, in the order of names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Its kernels.
    pub kernels: Vec<KernelInfo>,
    /// The structs that kernels take.
    pub arguments: Vec<Arguments>,
    /// Constants, enums, structs and functions.
    pub items: Vec<HostItem>,
}

/// A struct of arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// Its name.
    pub name: String,
    /// Its documentation, as attributes.
    pub documentation: String,
    /// Its fields, in order.
    pub fields: Vec<Param>,
}

/// An item that the host has as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostItem {
    /// Its name.
    pub name: String,
    /// Its source.
    pub source: String,
}

/// A parameter of a kernel, or a field of such.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name in the Rust source.
    pub name: String,
    /// Its documentation, as attributes; empty if it has none.
    pub documentation: String,
    /// Its type.
    pub ty: ParamType,
}

/// What a parameter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamType {
    /// A number, by its type.
    Number(String),
    /// A pointer, by what it points to.
    Pointer(String),
    /// A flag, the host's `bool`, passed as a u32.
    Flag,
    /// A code of the enum of that name, passed as a u32.
    Code(String),
    /// A tensor map by value.
    TensorMap,
    /// The struct of arguments of that name.
    Struct(String),
}

impl ParamType {
    /// Bytes in the parameter buffer; none for a struct, whose fields have.
    fn size(&self) -> Option<u32> {
        match self {
            ParamType::Number(number) if number.ends_with("64") => Some(8),
            ParamType::Number(_) | ParamType::Flag | ParamType::Code(_) => Some(4),
            ParamType::Pointer(_) => Some(8),
            ParamType::TensorMap => Some(128),
            ParamType::Struct(_) => None,
        }
    }
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct FlatParam {
    /// The fields that lead to it: `arguments.scales.a`.
    pub path: Vec<String>,
    /// What it is, no struct.
    pub ty: ParamType,
    /// Its bytes.
    pub size: u32,
}

impl Records {
    /// Reads all records in `assembly`.
    pub fn read(assembly: &str) -> Result<Self, Error> {
        let mut records = Records::default();
        for line in assembly.lines() {
            if let Some(record) = line.strip_prefix(KERNEL) {
                records.kernels.push(kernel(record)?);
            } else if let Some(record) = line.strip_prefix(ARGUMENTS) {
                records.arguments.push(arguments(record)?);
            } else if let Some(record) = line.strip_prefix(HOST) {
                records.items.push(host_item(record)?);
            }
        }
        let Records { kernels, arguments, items } = &mut records;
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        arguments.sort_by(|a, b| a.name.cmp(&b.name));
        items.sort_by(|a, b| a.name.cmp(&b.name));
        unique("kernels", kernels.iter().map(|kernel| &kernel.name))?;
        unique("structs of arguments", arguments.iter().map(|arguments| &arguments.name))?;
        unique("items for the host", items.iter().map(|item| &item.name))?;
        Ok(records)
    }

    /// Whether a line of the assembly is one.
    pub fn is_record(line: &str) -> bool {
        [KERNEL, ARGUMENTS, HOST].iter().any(|prefix| line.starts_with(prefix))
    }

    /// The parameters of an entry that takes `params`, in order: as they are, or, where structs were taken
    /// apart, the largest first.
    pub fn flatten(&self, params: &[Param]) -> Result<Vec<FlatParam>, Error> {
        let mut flat = Vec::new();
        self.flatten_into(params, &mut Vec::new(), &mut flat)?;
        if params.iter().any(|param| matches!(param.ty, ParamType::Struct(_))) {
            flat.sort_by_key(|param| Reverse(param.size));
        }
        Ok(flat)
    }

    fn flatten_into(
        &self,
        params: &[Param],
        path: &mut Vec<String>,
        flat: &mut Vec<FlatParam>,
    ) -> Result<(), Error> {
        for Param { name, ty, .. } in params {
            path.push(name.clone());
            match (ty, ty.size()) {
                (ParamType::Struct(name), _) => {
                    let found = self.arguments.iter().find(|arguments| arguments.name == *name);
                    let missing = || Error::Format(format!("`{name}` is no struct of `#[arguments]`"));
                    self.flatten_into(&found.ok_or_else(missing)?.fields, path, flat)?;
                }
                (_, size) => {
                    let size = size.unwrap_or_default();
                    flat.push(FlatParam { path: path.clone(), ty: ty.clone(), size });
                }
            }
            path.pop();
        }
        Ok(())
    }
}

/// Refuses two of a name among `names`, which are in order.
fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let names = names.collect::<Vec<_>>();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::Format(format!("two {what} are named `{}`", pair[0]))),
        None => Ok(()),
    }
}

/// `scale threads=256 min_blocks=2 cluster=1 wgmma_n=0 overlap=0 unroll=1 shared=0 (x : * const f32)`
///
/// `overlap` is 1 where the kernel may begin before its predecessor has ended, `unroll` where `ptxas` may
/// unroll its loops; else they are 0.
fn kernel(record: &str) -> Result<KernelInfo, Error> {
    let parse = || {
        let (head, parameters) = record.split_once(" (")?;
        let mut words = head.split(' ');
        let name = words.next()?.to_owned();
        let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
        let number = |value: &str| value.parse::<u32>().ok();
        let flag = |value: &str| ["0", "1"].iter().position(|&one| one == value).map(|one| one == 1);
        let (threads, min_blocks) = (number(value("threads")?)?, number(value("min_blocks")?)?);
        let cluster = number(value("cluster")?)?;
        let wgmma_n = value("wgmma_n")?.split('+').map(number).collect::<Option<Vec<_>>>()?;
        let (overlap, may_unroll) = (flag(value("overlap")?)?, flag(value("unroll")?)?);
        let shared = number(value("shared")?)?;
        let parameters = parameters.strip_suffix(')')?.parse::<TokenStream>().ok()?;
        let parser = Punctuated::<FnArg, Token![,]>::parse_terminated;
        let parameters = syn::parse::Parser::parse2(parser, parameters).ok()?;
        Some(KernelInfo {
            name,
            threads,
            min_blocks,
            cluster,
            wgmma_n: wgmma_n.into_iter().filter(|&n| n != 0).collect(),
            overlap,
            may_unroll,
            dynamic_shared: shared,
            params: parameters.iter().map(parameter).collect::<Option<_>>()?,
            text: 0..0,
            static_shared: 0,
            resources: None,
        })
    };
    let kernel = parse().ok_or_else(|| malformed("kernel", record))?;
    let KernelInfo { name, threads, min_blocks, cluster, .. } = &kernel;
    if !(1..=1024).contains(threads) || !(1..=32).contains(min_blocks) || !(1..=8).contains(cluster) {
        return Err(Error::Format(format!(
            "kernel `{name}` has threads = {threads}, min_blocks = {min_blocks}, cluster = {cluster}; allowed are 1 to \
             1024, 1 to 32 and 1 to 8"
        )));
    }
    if let Some(n) = kernel.wgmma_n.iter().find(|&n| n % 8 != 0 || *n > 256) {
        return Err(Error::Format(format!(
            "kernel `{name}` has wgmma_n = {n}; N is a multiple of 8 up to 256"
        )));
    }
    Ok(kernel)
}

fn parameter(argument: &FnArg) -> Option<Param> {
    let FnArg::Typed(argument) = argument else { return None };
    let Pat::Ident(name) = &*argument.pat else { return None };
    let documentation = String::new();
    Some(Param { name: name.ident.to_string(), documentation, ty: param_type(&argument.ty)? })
}

fn arguments(record: &str) -> Result<Arguments, Error> {
    let parse = || {
        let item = syn::parse_str::<syn::ItemStruct>(record).ok()?;
        let field = |field: &Field| {
            let name = field.ident.as_ref()?.to_string();
            Some(Param { name, documentation: documentation(&field.attrs), ty: param_type(&field.ty)? })
        };
        Some(Arguments {
            name: item.ident.to_string(),
            documentation: documentation(&item.attrs),
            fields: item.fields.iter().map(field).collect::<Option<_>>()?,
        })
    };
    parse().ok_or_else(|| malformed("arguments", record))
}

fn host_item(record: &str) -> Result<HostItem, Error> {
    let mut item = syn::parse_str::<Item>(record).map_err(|_| malformed("host", record))?;
    let (name, visibility) = match &mut item {
        Item::Const(item) => (&item.ident, &mut item.vis),
        Item::Enum(item) => (&item.ident, &mut item.vis),
        Item::Struct(item) => (&item.ident, &mut item.vis),
        Item::Fn(item) => (&item.sig.ident, &mut item.vis),
        _ => return Err(malformed("host", record)),
    };
    *visibility = syn::parse_quote!(pub);
    let name = name.to_string();
    Ok(HostItem { name, source: item.to_token_stream().to_string() })
}

fn malformed(kind: &str, record: &str) -> Error {
    Error::Format(format!("the {kind} record `{record}` does not parse"))
}

fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter(|attribute| attribute.path().is_ident("doc"));
    lines.map(|line| line.to_token_stream().to_string()).collect::<Vec<_>>().join("\n")
}

fn param_type(ty: &Type) -> Option<ParamType> {
    Some(match ty {
        Type::Group(group) => return param_type(&group.elem),
        Type::Ptr(pointer) => ParamType::Pointer(element(&pointer.elem)?),
        Type::Path(path) => {
            let last = path.path.segments.last()?;
            let name = last.ident.to_string();
            match (name.as_str(), &last.arguments) {
                ("u32" | "i32" | "u64" | "i64" | "f32", _) => ParamType::Number(name),
                ("Flag", _) => ParamType::Flag,
                ("TensorMap", _) => ParamType::TensorMap,
                ("Code", PathArguments::AngleBracketed(kinds)) => match kinds.args.first()? {
                    GenericArgument::Type(kind) => ParamType::Code(element(kind)?),
                    _ => return None,
                },
                _ => ParamType::Struct(name),
            }
        }
        _ => return None,
    })
}

/// A type that is pointed to: the last segment of a path, or an array of such.
fn element(ty: &Type) -> Option<String> {
    match ty {
        Type::Group(group) => element(&group.elem),
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        Type::Array(array) => Some(format!("[{}; {}]", element(&array.elem)?, array.len.to_token_stream())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSEMBLY: &str = "\
//#kernel scale threads=256 min_blocks=2 cluster=1 wgmma_n=64 overlap=1 unroll=0 shared=512 \
(x : * const crate :: Bf16 , rest : crate :: Rest)
//#arguments #[doc = r\" The rest.\"] pub struct Rest { #[doc = r\" Tiles.\"] pub tiles : * mut [i32 ; 4] , pub map : TensorMap , \
pub how : Code < crate :: How > , pub last : Flag , pub n : u64 , }
//#host #[doc = r\" How.\"] #[derive (Clone , Copy)] #[repr (u32)] pub enum How { Fast = 0 , Slow = 1 , }
//#host pub const COLUMNS : u32 = 256;
";

    #[test]
    fn structs_are_taken_apart() {
        let records = Records::read(ASSEMBLY).expect("well formed");
        let kernel = &records.kernels[0];
        assert_eq!((kernel.threads, kernel.dynamic_shared), (256, 512));
        assert_eq!((kernel.overlap, kernel.may_unroll), (true, false));
        let flat = records.flatten(&kernel.params).expect("its structs are there");
        let flat = flat.iter().map(|param| (param.path.join("."), param.size)).collect::<Vec<_>>();
        let expected = [
            ("rest.map", 128),
            ("x", 8),
            ("rest.tiles", 8),
            ("rest.n", 8),
            ("rest.how", 4),
            ("rest.last", 4),
        ];
        assert_eq!(flat, expected.map(|(path, size)| (path.to_owned(), size)));
        assert_eq!(records.arguments[0].fields[0].ty, ParamType::Pointer("[i32; 4]".into()));
        assert_eq!(records.arguments[0].fields[2].ty, ParamType::Code("How".into()));
        assert_eq!(
            records.items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(),
            ["COLUMNS", "How"]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |from: &str, to: &str| {
            let records = Records::read(&ASSEMBLY.replace(from, to))
                .and_then(|records| records.flatten(&records.kernels[0].params).map(|_| ()));
            records.expect_err(to).to_string()
        };
        assert!(refused("threads=256", "threads=2048").contains("threads = 2048"));
        assert!(refused("wgmma_n=64", "wgmma_n=60").contains("wgmma_n = 60"));
        assert!(refused("wgmma_n=64", "wgmma_n=8+60").contains("wgmma_n = 60"));
        assert!(refused("wgmma_n=64", "wgmma_n=8+").contains("kernel record `scale"));
        assert!(refused("overlap=1", "overlap=2").contains("kernel record `scale"));
        assert!(refused("unroll=0", "unroll=never").contains("kernel record `scale"));
        assert!(refused(" unroll=0", "").contains("kernel record `scale"));
        assert!(refused(" shared=512", "").contains("kernel record `scale"));
        assert!(refused("pub struct Rest", "pub struct Other").contains("`Rest` is no struct"));
        assert!(refused("const COLUMNS", "const How").contains("two items for the host are named `How`"));
        assert!(refused("pub enum How", "pub trait How").contains("host record"));
    }
}
