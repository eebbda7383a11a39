//! x
use farpost_pocket::{corpus::Corpus,template::Split,train};
fn main() { 
  let mut o = train::Options::default();
  let a: Vec<String> = std::env::args().collect();
  if a.len()>1 { o.steps=a[1].parse().unwrap(); }
  if a.len()>2 { o.batch=a[2].parse().unwrap(); }
  if a.len()>3 { o.rate=a[3].parse().unwrap(); }
  let v = train::learn_vocabulary(&o);
  println!("{:?}", &v.tokens[v.tokens.len()-60..]);
  let c = Corpus::new(1, Split::Train);
  let (mut p, mut q)=(0,0);
  for i in 0..2000 { let e=train::encode(&v,&c.example(i)); p+=e.answer; q+=e.ids.len()-e.answer; }
  println!("prompt {} answer {}", p as f64/2000., q as f64/2000.);
  let n = train::train(&o,&v).unwrap();
  let map: std::collections::HashMap<String, candle_core::Tensor> = n.vars.iter().map(|(k,v)|(k.clone(), v.as_tensor().clone())).collect();
  candle_core::safetensors::save(&map, "/tmp/pocket_ckpt.safetensors").unwrap();
  let t = Corpus::new(1, Split::Test);
  println!("test {}", train::exact_match(&n,&v,&t,1000,false).unwrap());
}
