use super::*;

#[test]
fn every_twin_gives_the_builders_numbers() {
    for preset in presets() {
        let error = preset.measure(&Device::flex()).unwrap();
        assert_eq!(error.is_some(), preset.twin.is_some());
        if let Some(error) = error {
            assert!(error < 1e-5, "{}: {error}", preset.name);
        }
    }
}

#[test]
fn a_wrong_member_is_noticed() {
    let find = |name: &str| presets().into_iter().find(|preset| preset.name == name).unwrap();
    let mut wrong = find("deltanet");
    wrong.config.bias = Bias::DotProduct;
    assert!(wrong.measure(&Device::flex()).unwrap().unwrap() > 1e-2);
    let mut wrong = find("ttt_mlp");
    wrong.config.chunk = 8;
    // The twin follows the chunk; the kind of memory it does not.
    assert!(wrong.measure(&Device::flex()).unwrap().unwrap() < 1e-5);
    wrong.config.memory = MemoryConfig::Mlp { expansion: 4, depth: 2, bias: true, gelu: Gelu::Exact };
    assert!(wrong.measure(&Device::flex()).unwrap().unwrap() > 1e-5);
    let mut wrong = find("gla");
    wrong.config.gates = GateAxis::Row;
    assert!(wrong.measure(&Device::flex()).unwrap().unwrap() > 1e-2);
}

#[test]
fn every_preset_can_be_built_and_says_its_choices() {
    for preset in presets() {
        preset.config.init(16, &mut Init::new(0, &Device::flex())).unwrap();
    }
    let names: Vec<_> = presets().iter().map(|preset| preset.name).collect();
    let choices = |name: &str| presets().into_iter().find(|preset| preset.name == name).unwrap().choices();
    assert_eq!(names.len(), 15);
    assert_eq!(choices("deltanet"), ["linear", "l2", "none", "gd"]);
    assert_eq!(choices("gla"), ["linear", "dot_product", "l2 (all_d)", "gd"]);
    let moneta = choices("moneta");
    assert!(moneta[1].starts_with("lp(") && moneta[1].contains("p = 3"), "{moneta:?}");
    assert!(moneta[2].starts_with("lq(") && moneta[2].contains("q = 4"), "{moneta:?}");
}
