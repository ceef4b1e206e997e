use trainer::device::*;
use trainer::launch;
fn main() {
    for precision in [Precision::F32, Precision::Bf16] {
        let device = match Device::open(precision) {
            Ok(d) => d,
            Err(e) => {
                println!("{e} {}", e.exit_code());
                return;
            }
        };
        println!("{} {:?} {}", device.name(), device.capability(), device.multiprocessors());
        let n = 3_000_001;
        let host: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let mut a = device.floats(n).unwrap();
        device.upload(&host, &mut a);
        let mut b = device.floats(n).unwrap();
        device.copy(&a, &mut b);
        let mut back = vec![0f32; n];
        device.read(&b, &mut back).unwrap();
        assert_eq!(host, back);
        let mut v = device.values(17).unwrap();
        device.upload_values(&host[..17], &mut v);
        let mut w = vec![0f32; 17];
        device.download_values(&v, &mut w);
        assert_eq!(w, host[..17]);
        let graph = device
            .capture(|| {
                device.zero(a.part_mut(1..5));
                device.copy(a.view(), &mut b);
            })
            .unwrap();
        println!("nodes {}", graph.nodes());
        device.read(&b, &mut back).unwrap();
        assert_eq!(host, back);
        device.replay(&graph);
        device.read(&b, &mut back).unwrap();
        assert_eq!(back[..6], [0., 0., 0., 0., 0., 5.]);
        println!("{:?}", device.memory().unwrap());
        let e = device.buffer(Element::U64, 1 << 40).err().map(|e| (e.exit_code(), e.to_string()));
        println!("{e:?}");
        drop(b);
        drop(a);
        drop(graph);
        launch!(device, "nothing", Grid::line(1, 32));
        println!("{}", device.check().unwrap_err());
    }
}
