//! tmp
use meshstor_model::check;
use meshstor_model::rules::*;
use meshstor_model::state::Budget;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n = |i: usize| a[i].parse::<u8>().unwrap();
    let b = Bounds { replicas: n(1) as usize, epochs: n(2), generations: n(3), writes: n(4), restage: n(5)!=0,
        faults: Budget { crashes: n(6), cuts: n(7), failures: n(8), losses: n(9) } };
    let v = a.get(10).map(|name| VARIANTS.iter().find(|v| v.name == name).unwrap().variant);
    let o = check::run(b, v);
    println!("gen {} unique {} depth {} {:?} unseen {:?}", o.generated, o.unique, o.depth, o.took, o.unseen);
    if let Some((name, path)) = o.violation {
        println!("VIOLATED {name}");
        for (s, act) in &path { if let Some(x) = act { println!("  {x}"); } else { println!("{s:?}"); } }
    }
}
