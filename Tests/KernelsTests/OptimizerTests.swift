import CShims
import XCTest

final class OptimizerTests: KernelTestCase {
    func testSGD() {
        var random = SplitMix64(70)
        for build in Build.all {
            for n in lengths {
                for momentum: Float in [0, 0.9] {
                    for (nesterov, firstUpdate) in [(false, false), (false, true), (true, false), (true, true)] {
                        var options = shims_sgd(
                            gradient_scale: 0.3, learning_rate: 0.1, momentum: momentum, weight_decay: 0.01,
                            rate: 0.5, nesterov: nesterov ? 1 : 0, first_update: firstUpdate ? 1 : 0)
                        let p = random.floats(n)
                        let g = random.floats(n)
                        let old = initial(n, accumulate: !firstUpdate, &random)
                        let parameter = Buffer(p)
                        let gradient = Buffer(g)
                        let buffer = Buffer(old)
                        build.kernels.sgd(
                            parameter.pointer, gradient.pointer, momentum == 0 ? nil : buffer.pointer, &options,
                            Int64(n))

                        let direction = (0..<n).map { i -> (velocity: Double, step: Double) in
                            let g = 0.5 * (Double(g[i]) * Double(Float(0.3)) + Double(Float(0.01)) * Double(p[i]))
                            let velocity = firstUpdate ? g : Double(momentum) * Double(old[i]) + g
                            if momentum == 0 { return (velocity, g) }
                            return (velocity, nesterov ? g + Double(momentum) * velocity : velocity)
                        }
                        let sizes = p.map { abs(Double($0)) + 2 }
                        let context = "\(build.name) n=\(n) momentum \(momentum)"
                        expect(
                            parameter.elements,
                            near: zip(p, direction).map { Double($0) - Double(Float(0.1)) * $1.step }, within: 2,
                            size: sizes, context)
                        if momentum > 0 {
                            expect(buffer.elements, near: direction.map(\.velocity), within: 2, size: sizes, context)
                        }
                    }
                }
            }
        }
    }

    func testMomentsTakeInGradients() {
        var random = SplitMix64(78)
        for build in Build.all {
            for n in lengths {
                for isFirst in [true, false] {
                    var options = shims_moments(
                        gradient_scale: 0.3, beta2: 0.999, weight1: 0.1, weight2: 0.001, is_first: isFirst ? 1 : 0)
                    let (g, m, v) = (random.floats(n), random.floats(n), random.floats(n, in: 0.01...1))
                    let (gradient, first, second) = (Buffer(g), Buffer(m), Buffer(v))
                    build.kernels.adam_take_in(gradient.pointer, first.pointer, second.pointer, &options, Int64(n))
                    let scaled = g.map { Double(Float(0.3)) * Double($0) }
                    let context = "\(build.name) n=\(n)"
                    let means = zip(scaled, m).map { g, m in
                        Double(m) + Double(Float(0.1)) * (isFirst ? g - Double(m) : g)
                    }
                    let squares = zip(scaled, v).map { g, v in
                        (isFirst ? Double(Float(0.999)) : 1) * Double(v) + Double(Float(0.001)) * g * g
                    }
                    expect(first.elements, near: means, within: 2, size: m.map { abs(Double($0)) + 2 }, context)
                    expect(second.elements, near: squares, within: 2, context)
                }
            }
        }
    }

    /// A gradient that is taken in and a step along the moments are the bits of a step with that gradient.
    func testAStepAlongMomentsIsThatOfAdam() {
        var random = SplitMix64(79)
        for build in Build.all {
            for n in lengths {
                var options = adamOptions(decoupledDecay: 0.999, l2Decay: 0)
                var moments = shims_moments(
                    gradient_scale: 0.3, beta2: 0.999, weight1: 0.1, weight2: 0.001, is_first: 1)
                let arrays = [random.floats(n), random.floats(n), random.floats(n, in: 0.01...1)]
                let gradient = Buffer(random.floats(n))
                let (whole, parts) = (arrays.map { Buffer($0) }, arrays.map { Buffer($0) })
                build.kernels.adam(
                    whole[0].pointer, gradient.pointer, whole[1].pointer, whole[2].pointer, &options, Int64(n))
                build.kernels.adam_take_in(
                    gradient.pointer, parts[1].pointer, parts[2].pointer, &moments, Int64(n))
                build.kernels.adam_along_moments(
                    parts[0].pointer, parts[1].pointer, parts[2].pointer, &options, Int64(n))
                for (a, b) in zip(whole, parts) { XCTAssertEqual(a.elements, b.elements, "\(build.name) n=\(n)") }
            }
        }
    }

    private func adamOptions(decoupledDecay: Float, l2Decay: Float) -> shims_adam {
        shims_adam(
            gradient_scale: 0.3, beta2: 0.999, eps: 1e-8, step_size: 0.01, gradient_step_size: 0.02,
            inverse_sqrt_correction2: 1.7, weight1: 0.1, weight2: 0.001, decoupled_decay: decoupledDecay,
            l2_decay: l2Decay)
    }

    private typealias AdamKernel =
        @convention(c) (
            UnsafeMutablePointer<Float>, UnsafePointer<Float>, UnsafeMutablePointer<Float>, UnsafeMutablePointer<Float>,
            UnsafePointer<shims_adam>, Int64
        ) -> Void

    /// Checks one of the kernels with Adam's moments, whose step is what `step` makes of (g, m, the denominator).
    private func checkAdam(
        _ kernel: (shims_kernel_table) -> AdamKernel, _ step: (Double, Double, Double) -> Double,
        _ random: inout SplitMix64
    ) {
        for build in Build.all {
            for n in lengths {
                for (decoupled, l2): (Float, Float) in [(1, 0), (0.999, 0), (1, 0.01)] {
                    var options = adamOptions(decoupledDecay: decoupled, l2Decay: l2)
                    let p = random.floats(n)
                    let g = random.floats(n)
                    let m = random.floats(n)
                    let v = random.floats(n, in: 0.01...1)
                    let parameter = Buffer(p)
                    let gradient = Buffer(g)
                    let first = Buffer(m)
                    let second = Buffer(v)
                    kernel(build.kernels)(
                        parameter.pointer, gradient.pointer, first.pointer, second.pointer, &options, Int64(n))

                    var truth: (p: [Double], m: [Double], v: [Double]) = ([], [], [])
                    for i in 0..<n {
                        let g = Double(Float(0.3)) * Double(g[i]) + Double(l2) * Double(p[i])
                        truth.m.append(Double(m[i]) + Double(Float(0.1)) * (g - Double(m[i])))
                        truth.v.append(Double(Float(0.999)) * Double(v[i]) + Double(Float(0.001)) * g * g)
                        let denominator = truth.v[i].squareRoot() * Double(Float(1.7)) + Double(Float(1e-8))
                        truth.p.append(Double(p[i]) * Double(decoupled) - step(g, truth.m[i], denominator))
                    }
                    let context = "\(build.name) n=\(n)"
                    expect(first.elements, near: truth.m, within: 2, size: m.map { abs(Double($0)) + 2 }, context)
                    expect(second.elements, near: truth.v, within: 2, context)
                    expect(parameter.elements, near: truth.p, within: 2, size: p.map { abs(Double($0)) + 0.3 }, context)
                }
            }
        }
    }

    func testAdam() {
        var random = SplitMix64(71)
        let (size, gradientSize) = (Double(Float(0.01)), Double(Float(0.02)))
        checkAdam({ $0.adam }, { _, m, denominator in size * m / denominator }, &random)
        checkAdam({ $0.nadam }, { g, m, denominator in (size * m + gradientSize * g) / denominator }, &random)
        checkAdam({ $0.adam_mean }, { _, m, _ in size * m }, &random)
    }

    func testLAMB() {
        var random = SplitMix64(74)
        for build in Build.all {
            for n in lengths {
                var options = shims_lamb(
                    gradient_scale: 0.5, beta2: 0.999, eps: 1e-3, weight1: 0.1, weight2: 0.001,
                    inverse_correction1: 1.25, inverse_sqrt_correction2: 1.5, weight_decay: 0.125)
                let p = random.floats(n)
                let g = random.floats(n)
                let m = random.floats(n)
                let v = random.floats(n, in: 0.01...1)
                let parameter = Buffer(p)
                let gradient = Buffer(g)
                let first = Buffer(m)
                let second = Buffer(v)
                var squares = shims_squares(parameter: .nan, direction: .nan)
                build.kernels.lamb_moments(
                    parameter.pointer, gradient.pointer, first.pointer, second.pointer, &options, Int64(n), &squares)
                expectSameBits(parameter.elements, p, build.name)
                build.kernels.lamb_step(parameter.pointer, first.pointer, second.pointer, &options, 0.25, Int64(n))

                var truth: (m: [Double], v: [Double], r: [Double]) = ([], [], [])
                for i in 0..<n {
                    let g = 0.5 * Double(g[i])
                    truth.m.append(Double(m[i]) + Double(Float(0.1)) * (g - Double(m[i])))
                    truth.v.append(Double(Float(0.999)) * Double(v[i]) + Double(Float(0.001)) * g * g)
                    let denominator = truth.v[i].squareRoot() * 1.5 + Double(Float(1e-3))
                    truth.r.append(truth.m[i] * 1.25 / denominator + 0.125 * Double(p[i]))
                }
                let context = "\(build.name) n=\(n)"
                let sizes = zip(p, truth.r).map { abs(Double($0)) + 0.25 * abs($1) + 1 }
                expect(first.elements, near: truth.m, within: 2, size: m.map { abs(Double($0)) + 2 }, context)
                expect(second.elements, near: truth.v, within: 2, context)
                expect(
                    parameter.elements, near: zip(p, truth.r).map { Double($0) - 0.25 * $1 }, within: 2, size: sizes,
                    context)
                // Exact squares of what has a handful of roundings, each of half an ULP.
                let sum = truth.r.reduce(0) { $0 + $1 * $1 }
                XCTAssertEqual(squares.direction, sum, accuracy: 16 * 0x1p-24 * (sum + Double(n)), context)
                let square = p.reduce(0) { $0 + Double($1) * Double($1) }
                XCTAssertEqual(squares.parameter, square, accuracy: 1e-12 * square, context)
            }
        }
    }

    func testMuon() {
        var random = SplitMix64(75)
        for build in Build.all {
            for n in lengths {
                for nesterov in [false, true] {
                    var options = shims_muon(
                        gradient_scale: 0.5, weight: 0.25, momentum: 0.75, nesterov: nesterov ? 1 : 0)
                    let p = random.floats(n)
                    let g = random.floats(n)
                    let b = random.floats(n)
                    let parameter = Buffer(p)
                    let gradient = Buffer(g)
                    let buffer = Buffer(b)
                    let direction = Buffer(repeating: unread, count: n)
                    let square = build.kernels.muon_momentum(
                        direction.pointer, gradient.pointer, buffer.pointer, &options, Int64(n))
                    build.kernels.muon_step(parameter.pointer, direction.pointer, 0.875, 0.25, Int64(n))

                    let moved = zip(b, g).map { 0.75 * Double($0) + 0.25 * 0.5 * Double($1) }
                    let truth = zip(moved, g).map { nesterov ? 0.25 * 0.5 * Double($1) + 0.75 * $0 : $0 }
                    let context = "\(build.name) n=\(n)"
                    let sizes = b.map { abs(Double($0)) + 1 }
                    expect(buffer.elements, near: moved, within: 2, size: sizes, context)
                    expect(direction.elements, near: truth, within: 3, size: sizes, context)
                    let stepped = zip(p, direction.elements).map { 0.875 * Double($0) - 0.25 * Double($1) }
                    expect(parameter.elements, near: stepped, within: 1, size: p.map { abs(Double($0)) + 1 }, context)
                    let sum = direction.elements.reduce(0) { $0 + Double($1) * Double($1) }
                    XCTAssertEqual(square, sum, accuracy: 1e-12 * sum, context)
                }
            }
        }
    }

    /// State that moves all the way to a gradient becomes it, however large it was.
    func testALargeStateLeavesNothingOfItself() {
        var random = SplitMix64(76)
        for build in Build.all {
            for n in lengths {
                let g = random.floats(n)
                let large = random.floats(n).map { $0 * 1e9 }
                let (gradient, state) = (Buffer(g), Buffer(large))
                let parameter = Buffer(repeating: Float(0), count: n)
                var lion = shims_lion(gradient_scale: 1, learning_rate: 1, weight1: 1, weight2: 1, decoupled_decay: 1)
                build.kernels.lion(parameter.pointer, gradient.pointer, state.pointer, &lion, Int64(n))
                XCTAssertEqual(parameter.elements, g.map { $0 > 0 ? -1 : $0 < 0 ? 1 : 0 }, build.name)
                XCTAssertEqual(state.elements, g, build.name)

                let (buffer, direction) = (Buffer(large), Buffer(repeating: unread, count: n))
                var muon = shims_muon(gradient_scale: 1, weight: 1, momentum: 0, nesterov: 0)
                _ = build.kernels.muon_momentum(
                    direction.pointer, gradient.pointer, buffer.pointer, &muon, Int64(n))
                XCTAssertEqual(buffer.elements, g, build.name)
                XCTAssertEqual(direction.elements, g, build.name)

                let (squares, variance) = (g.map { $0 * $0 }, Buffer(large.map { $0 * $0 }))
                let sums = Buffer(squares)
                build.kernels.adafactor_factors(variance.pointer, sums.pointer, 1, 1, Int64(n))
                XCTAssertEqual(variance.elements, squares, build.name)
            }
        }
    }

    func testLion() {
        var random = SplitMix64(73)
        for build in Build.all {
            for n in lengths {
                var options = shims_lion(
                    gradient_scale: 0.5, learning_rate: 0.01, weight1: 0.1, weight2: 0.01, decoupled_decay: 0.999)
                let p = random.floats(n)
                let m = random.floats(n)
                // Now and then a direction of exactly 0.
                let g = m.enumerated().map { $0 % 5 == 0 ? 0 : $1 + Float.random(in: -40...40, using: &random) }
                let old = m.enumerated().map { $0 % 5 == 0 ? 0 : $1 }
                let parameter = Buffer(p)
                let gradient = Buffer(g)
                let mean = Buffer(old)
                build.kernels.lion(parameter.pointer, gradient.pointer, mean.pointer, &options, Int64(n))

                var truth: (p: [Double], m: [Double]) = ([], [])
                for i in 0..<n {
                    let change = 0.5 * Double(g[i]) - Double(old[i])
                    let direction = Double(old[i]) + Double(Float(0.1)) * change
                    let sign: Double = direction > 0 ? 1 : direction < 0 ? -1 : 0
                    truth.p.append(Double(p[i]) * Double(Float(0.999)) - Double(Float(0.01)) * sign)
                    truth.m.append(Double(old[i]) + Double(Float(0.01)) * change)
                }
                expect(parameter.elements, near: truth.p, within: 1, size: p.map { abs(Double($0)) + 0.01 }, build.name)
                expect(mean.elements, near: truth.m, within: 1, size: old.map { abs(Double($0)) + 1 }, build.name)
            }
        }
    }

    /// An update is made element by element: no bit of it depends on the cut.
    func testUpdatesDoNotDependOnTheCut() {
        var random = SplitMix64(72)
        let n = 211
        let p = random.floats(n)
        let g = random.floats(n)
        let m = random.floats(n)
        let v = random.floats(n, in: 0...1)
        var options = adamOptions(decoupledDecay: 0.99, l2Decay: 0.1)
        for build in Build.all {
            for kernel in [build.kernels.adam, build.kernels.nadam, build.kernels.adam_mean] {
                func update(_ cuts: [Range<Int>]) -> [Float] {
                    let parameter = Buffer(p)
                    let gradient = Buffer(g)
                    let first = Buffer(m)
                    let second = Buffer(v)
                    for cut in cuts {
                        let start = cut.lowerBound
                        kernel(
                            parameter.pointer + start, gradient.pointer + start, first.pointer + start,
                            second.pointer + start, &options, Int64(cut.count))
                    }
                    return parameter.elements + first.elements + second.elements
                }
                let whole = update([0..<n])
                for cut in 1..<n { expectSameBits(update([0..<cut, cut..<n]), whole, "\(build.name) cut at \(cut)") }
            }
        }
    }
}
