import CShims

/// The buffer moves towards `g = scale * gradient` by `weight`; the direction is the buffer or, with Nesterov's momentum, g
/// moved towards the buffer by `momentum`. Returns its sum of squares, in double precision. Without a momentum the buffer
/// is g itself, and not what rounding beside a large old one leaves of it.
func muonMomentum(
    _ direction: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ buffer: UnsafeMutablePointer<Float>,
    _ options: UnsafePointer<shims_muon>, _ n: Int64
) -> Double {
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let weight = Vector(repeating: options.weight)
    let momentum = Vector(repeating: options.momentum)
    let (isNesterov, becomesGradient) = (options.nesterov != 0, options.weight == 1)
    var sum: DoubleVector = (.zero, .zero)
    @inline(always)
    func update(_ lanes: Lanes) {
        let g = load(gradient, lanes) * scale
        let old = load(buffer, lanes)
        let moved = becomesGradient ? g : multiplyAdd(weight, g - old, old)
        store(moved, buffer, lanes)
        let found = isNesterov ? multiplyAdd(momentum, moved - g, g) : moved
        store(found, direction, lanes)
        addSquares(found, to: &sum)
    }
    forEachLanes(to: Int(n), update)
    return sumOfLanes(sum)
}

/// The parameter, multiplied by `decay`, loses `step` times the direction.
func muonStep(
    _ parameter: UnsafeMutablePointer<Float>, _ direction: UnsafePointer<Float>, _ decay: Float, _ step: Float,
    _ n: Int64
) {
    let size = Vector(repeating: -step)
    @inline(always)
    func update(_ lanes: Lanes) {
        store(multiplyAdd(size, load(direction, lanes), load(parameter, lanes) * decay), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}
