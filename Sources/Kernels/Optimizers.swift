import CShims

/// Stochastic gradient descent as in `torch.optim.SGD`: with `g = rate * (scale * gradient + weight_decay * p)`, the
/// buffer becomes `momentum * buffer + g` and p loses `learning_rate` times the buffer, or with Nesterov's
/// momentum `g + momentum * buffer`.
func sgd(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>,
    _ buffer: UnsafeMutablePointer<Float>?, _ options: UnsafePointer<shims_sgd>, _ n: Int64
) {
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let decay = Vector(repeating: options.weight_decay)
    let momentum = Vector(repeating: options.momentum)
    let step = Vector(repeating: -options.learning_rate)
    let (isFirst, isNesterov) = (options.first_update != 0, options.nesterov != 0)
    @inline(always)
    func decayedGradient(_ p: Vector, _ lanes: Lanes) -> Vector {
        multiplyAdd(decay, p, load(gradient, lanes) * scale) * options.rate
    }
    guard let buffer else {
        @inline(always)
        func update(_ lanes: Lanes) {
            let p = load(parameter, lanes)
            store(multiplyAdd(step, decayedGradient(p, lanes), p), parameter, lanes)
        }
        return forEachLanes(to: Int(n), update)
    }
    @inline(always)
    func update(_ lanes: Lanes) {
        let p = load(parameter, lanes)
        let g = decayedGradient(p, lanes)
        let velocity = isFirst ? g : multiplyAdd(momentum, load(buffer, lanes), g)
        store(velocity, buffer, lanes)
        let direction = isNesterov ? multiplyAdd(momentum, velocity, g) : velocity
        store(multiplyAdd(step, direction, p), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}

/// Updates the moments with `g = scale * gradient + l2_decay * p`: `m += (1 - beta1)(g - m)` and
/// `v = beta2 * v + (1 - beta2) g^2`. The parameter becomes what `step` makes of it, decayed, and of g, m and v.
@inline(always)
private func withMoments(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>,
    _ m: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<Float>, _ options: shims_adam, _ n: Int64,
    _ step: (_ p: Vector, _ g: Vector, _ m: Vector, _ v: Vector) -> Vector
) {
    let scale = Vector(repeating: options.gradient_scale)
    let l2Decay = Vector(repeating: options.l2_decay)
    let weight1 = Vector(repeating: options.weight1)
    let beta2 = Vector(repeating: options.beta2)
    let weight2 = Vector(repeating: options.weight2)
    @inline(always)
    func update(_ lanes: Lanes) {
        let p = load(parameter, lanes)
        let g = multiplyAdd(l2Decay, p, load(gradient, lanes) * scale)
        let mean = load(m, lanes)
        let newMean = multiplyAdd(weight1, g - mean, mean)
        let newSquare = multiplyAdd(weight2 * g, g, load(v, lanes) * beta2)
        store(newMean, m, lanes)
        store(newSquare, v, lanes)
        store(step(p * options.decoupled_decay, g, newMean, newSquare), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}

/// Adam and AdamW as in `torch.optim`: p, decayed first, loses `step_size * m / (sqrt(v / correction2) + eps)`.
func adam(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>,
    _ m: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<Float>, _ options: UnsafePointer<shims_adam>,
    _ n: Int64
) {
    let options = options.pointee
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    @inline(always)
    func step(_ p: Vector, _ g: Vector, _ m: Vector, _ v: Vector) -> Vector {
        multiplyAdd(size, m / multiplyAdd(v.squareRoot(), correction, options.eps), p)
    }
    withMoments(parameter, gradient, m, v, options, n, step)
}

/// NAdam as in `torch.optim`: the same, and p loses `gradient_step_size * g` over the same denominator.
func nadam(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>,
    _ m: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<Float>, _ options: UnsafePointer<shims_adam>,
    _ n: Int64
) {
    let options = options.pointee
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: options.step_size)
    let gradientSize = Vector(repeating: options.gradient_step_size)
    @inline(always)
    func step(_ p: Vector, _ g: Vector, _ m: Vector, _ v: Vector) -> Vector {
        p - multiplyAdd(size, m, gradientSize * g) / multiplyAdd(v.squareRoot(), correction, options.eps)
    }
    withMoments(parameter, gradient, m, v, options, n, step)
}

/// A step with these moments along the mean alone: p loses `step_size * m`, as in RAdam's first updates.
func adamMean(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>,
    _ m: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<Float>, _ options: UnsafePointer<shims_adam>,
    _ n: Int64
) {
    let options = options.pointee
    let size = Vector(repeating: -options.step_size)
    @inline(always)
    func step(_ p: Vector, _ g: Vector, _ m: Vector, _ v: Vector) -> Vector { multiplyAdd(size, m, p) }
    withMoments(parameter, gradient, m, v, options, n, step)
}

/// The moments of Adam take in `g = scale * gradient`: for the first gradient of an update `m += (1 - beta1)(g - m)` and
/// `v = beta2 * v + (1 - beta2) g^2`, and for each that follows `m += (1 - beta1) g` and `v += (1 - beta2) g^2`.
func adamTakeIn(
    _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<Float>,
    _ options: UnsafePointer<shims_moments>, _ n: Int64
) {
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let weight2 = Vector(repeating: options.weight2)
    if options.is_first != 0 {
        let beta2 = Vector(repeating: options.beta2)
        @inline(always)
        func update(_ lanes: Lanes) {
            let g = load(gradient, lanes) * scale
            let mean = load(m, lanes)
            store(multiplyAdd(weight1, g - mean, mean), m, lanes)
            store(multiplyAdd(weight2 * g, g, load(v, lanes) * beta2), v, lanes)
        }
        forEachLanes(to: Int(n), update)
    } else {
        @inline(always)
        func update(_ lanes: Lanes) {
            let g = load(gradient, lanes) * scale
            store(multiplyAdd(weight1, g, load(m, lanes)), m, lanes)
            store(multiplyAdd(weight2 * g, g, load(v, lanes)), v, lanes)
        }
        forEachLanes(to: Int(n), update)
    }
}

/// The step of ``adam(_:_:_:_:_:_:)`` with moments that are what they are to be.
func adamAlongMoments(
    _ parameter: UnsafeMutablePointer<Float>, _ m: UnsafePointer<Float>, _ v: UnsafePointer<Float>,
    _ options: UnsafePointer<shims_adam>, _ n: Int64
) {
    let options = options.pointee
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    @inline(always)
    func update(_ lanes: Lanes) {
        let denominator = multiplyAdd(load(v, lanes).squareRoot(), correction, options.eps)
        let p = load(parameter, lanes) * options.decoupled_decay
        store(multiplyAdd(size, load(m, lanes) / denominator, p), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}

/// Lion as its authors publish it: p, decayed first, loses `learning_rate` times the sign of m moved towards
/// `g = scale * gradient` by `1 - beta1`; then m moves towards g by `1 - beta2`. What moves all the way becomes g itself,
/// and not what rounding beside a large m leaves of it.
func lion(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<Float>,
    _ options: UnsafePointer<shims_lion>, _ n: Int64
) {
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let weight2 = Vector(repeating: options.weight2)
    let step = Vector(repeating: -options.learning_rate)
    let (isGradient, becomesGradient) = (options.weight1 == 1, options.weight2 == 1)
    @inline(always)
    func update(_ lanes: Lanes) {
        let mean = load(m, lanes)
        let g = load(gradient, lanes) * scale
        let change = g - mean
        let direction = sign(isGradient ? g : multiplyAdd(weight1, change, mean))
        store(becomesGradient ? g : multiplyAdd(weight2, change, mean), m, lanes)
        store(multiplyAdd(step, direction, load(parameter, lanes) * options.decoupled_decay), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}
