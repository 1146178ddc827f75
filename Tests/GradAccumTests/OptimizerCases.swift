import Foundation
import GradAccum

/// One row of the table: an optimizer, and its rule written down plainly in double.
struct OptimizerCase: Sendable {
    /// A parameter and its state in double.
    struct Truth {
        /// Its place in the optimizer.
        let index: Int
        let shape: [Int]
        var values: [Double]
        /// As many arrays as the rule wants, made on its first update.
        var state: [[Double]] = []

        init(_ index: Int, _ shape: [Int], _ values: [Double]) {
            self.index = index
            self.shape = shape
            self.values = values
        }

        /// Two numbers of state per element.
        var pairs: [SIMD2<Double>] {
            get { state.isEmpty ? values.map { _ in .zero } : zip(state[0], state[1]).map { SIMD2($0, $1) } }
            set { state = [newValue.map { $0[0] }, newValue.map { $0[1] }] }
        }

        mutating func add(_ factor: Double, times direction: [Double]) {
            for i in values.indices { values[i] += factor * direction[i] }
        }
    }

    typealias Reference = @Sendable (inout Truth, _ gradient: [Double], _ update: Int) -> Void

    let name: String
    let rule: any UpdateRule & Sendable
    let make: @Sendable ([Tensor]) throws(GAError) -> Optimizer
    /// Updates a parameter; updates count from 1.
    let reference: Reference
    /// Shapes that reach every path of the rule, a cut into pieces among them.
    var shapes = [[1], [15], [3, 11], [40_000]]
    /// The error that a rule in float32 makes in one update, for a parameter of size 1.
    var errorPerUpdate = 8 * 0x1p-24

    init<Rule: UpdateRule & Sendable>(_ name: String, _ rule: Rule, _ reference: @escaping Reference) {
        self.name = name
        self.rule = rule
        make = { parameters throws(GAError) in try Optimizer(parameters, rule) }
        self.reference = reference
    }

    /// A rule for one number: (parameter, gradient, two numbers of state, update).
    init<Rule: UpdateRule & Sendable>(
        _ name: String, _ rule: Rule,
        elementwise: @escaping @Sendable (inout Double, Double, inout SIMD2<Double>, Int) -> Void
    ) {
        self.init(name, rule) { truth, gradient, update in
            var state = truth.pairs
            for i in gradient.indices { elementwise(&truth.values[i], gradient[i], &state[i], update) }
            truth.pairs = state
        }
    }

    static let all: [OptimizerCase] = [
        sgd("sgd", SGD(learningRate: 0.1)),
        sgd("sgd with weight decay", SGD(learningRate: 0.1, weightDecay: 0.05)),
        sgd("sgd with momentum", SGD(learningRate: 0.05, momentum: 0.9)),
        sgd("sgd with Nesterov momentum", SGD(learningRate: 0.05, momentum: 0.9, weightDecay: 0.01, nesterov: true)),
        OptimizerCase("adam", Adam(learningRate: 0.02, weightDecay: 0.1)) { p, g, state, update in
            p -= 0.02 * direction(g + 0.1 * p, &state, update, 0.9, 0.999, 1e-8)
        },
        OptimizerCase(
            "adamw", AdamW(learningRate: 0.02, beta1: 0.8, beta2: 0.95, weightDecay: 0.1)
        ) { p, g, state, update in
            p *= 1 - 0.02 * 0.1
            p -= 0.02 * direction(g, &state, update, 0.8, 0.95, 1e-8)
        },
        // Its first steps are those of momentum: with this beta2 until the 7th.
        OptimizerCase("radam", RAdam(learningRate: 0.02, beta2: 0.95, weightDecay: 0.1)) { p, g, state, update in
            let moments = moments(g + 0.1 * p, &state, update, 0.9, 0.95)
            let longest = 2 / (1 - 0.95) - 1
            let length = longest - 2 * Double(update) * pow(0.95, Double(update)) / (1 - pow(0.95, Double(update)))
            guard length > 5 else {
                p -= 0.02 * moments.mean
                return
            }
            let rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            let root = state[1].squareRoot() + 1e-8
            p -= 0.02 * moments.mean * (rectification * (1 - pow(0.95, Double(update)))).squareRoot() / root
        },
        nadam("nadam", NAdam(learningRate: 0.02, weightDecay: 0.1, decoupledWeightDecay: true)),
        nadam("nadam with a fast momentum", NAdam(learningRate: 0.02, momentumDecay: 50)),
        OptimizerCase("lion", Lion(learningRate: 0.01, weightDecay: 0.1)) { p, g, state, _ in
            let direction = 0.9 * state[0] + (1 - 0.9) * g
            p -= 0.01 * ((direction > 0 ? 1 : direction < 0 ? -1 : 0) + 0.1 * p)
            state[0] = 0.99 * state[0] + (1 - 0.99) * g
        },
        lamb(LAMB(learningRate: 0.02, weightDecay: 0.1)),
        adafactor(Adafactor(learningRate: 0.05, eps2: 0.1, weightDecay: 0.1)),
        adamw8bit(AdamW8bit(learningRate: 0.02, beta1: 0.8, beta2: 0.95, weightDecay: 0.1, minimumSize: 30)),
        muon("muon", Muon(learningRate: 0.02)),
        muon(
            "muon, plain",
            Muon(
                learningRate: 0.02, weightDecay: 0.3, momentum: 0.8, nesterov: false, coefficients: (2, -1.5, 0.5),
                iterations: 8, adjustment: .matchRMSAdamW, adamWLearningRateRatio: 0.5, adamWBeta1: 0.8,
                adamWParameters: [2])),
        lars(LARS(learningRate: 2, momentum: 0.8, weightDecay: 0.1, trustCoefficient: 0.01)),
    ]

    private static func sgd(_ name: String, _ rule: SGD) -> OptimizerCase {
        OptimizerCase(name, rule) { p, g, state, update in
            let gradient = g + rule.weightDecay * p
            state[0] = update == 1 ? gradient : rule.momentum * state[0] + gradient
            let moved = rule.momentum == 0 ? gradient : rule.nesterov ? gradient + rule.momentum * state[0] : state[0]
            p -= rule.learningRate * moved
        }
    }

    private static func nadam(_ name: String, _ rule: NAdam) -> OptimizerCase {
        @Sendable func momentum(_ update: Int) -> Double {
            rule.beta1 * (1 - 0.5 * pow(0.96, Double(update) * rule.momentumDecay))
        }
        return OptimizerCase(name, rule) { p, g, state, update in
            let product = (1...update).map(momentum).reduce(1, *)
            let square = moments(g, &state, update, rule.beta1, rule.beta2).square
            p *= 1 - rule.learningRate * rule.weightDecay
            let direction =
                g * (1 - momentum(update)) / (1 - product)
                + state[0] * momentum(update + 1) / (1 - product * momentum(update + 1))
            p -= rule.learningRate * direction / (square.squareRoot() + rule.eps)
        }
    }

    private static func lamb(_ rule: LAMB) -> OptimizerCase {
        OptimizerCase("lamb", rule) { truth, gradient, update in
            var state = truth.pairs
            var r = gradient.indices.map { i -> Double in
                direction(gradient[i], &state[i], update, rule.beta1, rule.beta2, rule.eps)
            }
            for i in r.indices { r[i] += rule.weightDecay * truth.values[i] }
            truth.pairs = state
            truth.add(-rule.learningRate * length(truth.values) / length(r), times: r)
        }
    }

    private static func lars(_ rule: LARS) -> OptimizerCase {
        OptimizerCase("lars", rule) { truth, gradient, update in
            let length = length(truth.values)
            let rate = rule.trustCoefficient * length / (Self.length(gradient) + rule.weightDecay * length)
            if update == 1 { truth.state = [gradient.map { _ in 0 }] }
            for i in gradient.indices {
                let decayed = gradient[i] + rule.weightDecay * truth.values[i]
                truth.state[0][i] = rule.momentum * truth.state[0][i] + rule.learningRate * rate * decayed
            }
            truth.add(-1, times: truth.state[0])
        }
    }

    private static func adafactor(_ rule: Adafactor) -> OptimizerCase {
        var row = OptimizerCase("adafactor", rule) { truth, gradient, update in
            let isFactored = truth.shape.count > 1
            let columns = isFactored ? truth.shape.last! : gradient.count
            let rows = isFactored ? truth.shape[truth.shape.count - 2] : 1
            let matrices = gradient.count / (rows * columns)
            if update == 1 {
                truth.state = [matrices * rows, matrices * columns].map { [Double](repeating: 0, count: $0) }
            }
            let weight = pow(Double(update), rule.beta2Decay)
            var direction = gradient
            for matrix in 0..<matrices {
                let (row, column) = (matrix * rows, matrix * columns)
                var (rowMeans, columnMeans) = (
                    [Double](repeating: 0, count: rows), [Double](repeating: 0, count: columns)
                )
                for i in 0..<rows {
                    for j in 0..<columns {
                        let g = gradient[(row + i) * columns + j]
                        rowMeans[i] += g * g / Double(columns)
                        columnMeans[j] += g * g / Double(rows)
                    }
                }
                for i in 0..<rows { truth.state[0][row + i] += weight * (rowMeans[i] - truth.state[0][row + i]) }
                for j in 0..<columns {
                    truth.state[1][column + j] += weight * (columnMeans[j] - truth.state[1][column + j])
                }
                let mean = max(truth.state[0][row..<row + rows].reduce(0, +) / Double(rows), rule.eps1)
                for i in 0..<rows {
                    let factor = isFactored ? truth.state[0][row + i] / mean : 1
                    for j in 0..<columns {
                        let variance = max(factor * truth.state[1][column + j], rule.eps1 * rule.eps1)
                        direction[(row + i) * columns + j] /= variance.squareRoot()
                    }
                }
            }
            let root = Double(gradient.count).squareRoot()
            let size = max(rule.eps2, length(truth.values) / root)
            let clip = max(1, length(direction) / root / rule.clippingThreshold)
            for i in truth.values.indices { truth.values[i] *= 1 - rule.learningRate * rule.weightDecay }
            truth.add(-min(rule.learningRate, 1 / Double(update).squareRoot()) * size / clip, times: direction)
        }
        // Several matrices, a matrix of several blocks, and one with blocks of a row.
        row.shapes += [[2, 3, 4, 5], [70, 1100], [2, 70_000]]
        return row
    }

    private static func adamw8bit(_ rule: AdamW8bit) -> OptimizerCase {
        var row = OptimizerCase("adamw8bit", rule) { truth, gradient, update in
            var state = truth.pairs
            for i in gradient.indices {
                let moved = direction(gradient[i], &state[i], update, rule.beta1, rule.beta2, rule.eps)
                truth.values[i] *= 1 - rule.learningRate * rule.weightDecay
                truth.values[i] -= rule.learningRate * moved
            }
            truth.pairs = state
            guard gradient.count >= rule.minimumSize else { return }
            for start in stride(from: 0, to: gradient.count, by: 256) {
                let block = start..<min(start + 256, gradient.count)
                let largest = truth.state[0][block].map(abs).max()!
                let largestRoot = truth.state[1][block].max()!.squareRoot()
                for i in block {
                    truth.state[0][i] = largest * companded(truth.state[0][i] / largest)
                    let root = largestRoot * compandedRoot(truth.state[1][i].squareRoot() / largestRoot)
                    truth.state[1][i] = root * root
                }
            }
        }
        // A moment between two codes goes to another one with other rounding: up to 128 / 3952 of the largest away.
        row.errorPerUpdate = 0.02 * 128 / 3952
        return row
    }

    /// The nearest number with 4 bits in each of the segments 16 ... 32, 32 ... 64 and so on of 3952 `x` + 16.
    private static func companded(_ x: Double) -> Double {
        let place = 3952 * abs(x) + 16
        let unit = pow(2, floor(log2(place)) - 4)
        return (x < 0 ? -1 : 1) * (unit * (place / unit).rounded() - 16) / 3952
    }

    /// The middle of the numbers with the same 5 bits in the segments of 8096 `x` + 32.
    private static func compandedRoot(_ x: Double) -> Double {
        let place = 8096 * x + 32
        let unit = pow(2, floor(log2(place)) - 5)
        return (unit * (floor(place / unit) + 0.5) - 32) / 8096
    }

    private static func muon(_ name: String, _ rule: Muon) -> OptimizerCase {
        var row = OptimizerCase(name, rule) { truth, gradient, update in
            guard truth.shape.count == 2 && !rule.adamWParameters.contains(truth.index) else {
                let learningRate = rule.learningRate * rule.adamWLearningRateRatio
                var state = truth.pairs
                for i in gradient.indices {
                    let moved = direction(
                        gradient[i], &state[i], update, rule.adamWBeta1, rule.adamWBeta2, rule.adamWEps)
                    truth.values[i] *= 1 - learningRate * rule.adamWWeightDecay
                    truth.values[i] -= learningRate * moved
                }
                truth.pairs = state
                return
            }
            if update == 1 { truth.state = [gradient.map { _ in 0 }] }
            var x = gradient
            for i in x.indices {
                truth.state[0][i] += (1 - rule.momentum) * (gradient[i] - truth.state[0][i])
                x[i] = truth.state[0][i]
                if rule.nesterov { x[i] = gradient[i] + rule.momentum * (x[i] - gradient[i]) }
            }
            let (rows, columns) = (truth.shape[0], truth.shape[1])
            let norm = max(length(x), rule.eps)
            for i in x.indices { x[i] /= norm }
            for _ in 0..<rule.iterations {
                let gram = product(x, transposed(x, rows, columns), rows, columns, rows)
                let cube = product(gram, x, rows, rows, columns)
                let fifth = product(gram, cube, rows, rows, columns)
                for i in x.indices {
                    x[i] = rule.coefficients.a * x[i] + rule.coefficients.b * cube[i] + rule.coefficients.c * fifth[i]
                }
            }
            let ratio =
                rule.adjustment == .original
                ? max(1, Double(rows) / Double(columns)).squareRoot() : 0.2 * Double(max(rows, columns)).squareRoot()
            for i in x.indices { truth.values[i] *= 1 - rule.learningRate * rule.weightDecay }
            truth.add(-rule.learningRate * ratio, times: x)
        }
        row.shapes += [[24, 10], [70, 66]]
        return row
    }

    private static func transposed(_ x: [Double], _ rows: Int, _ columns: Int) -> [Double] {
        (0..<columns).flatMap { column in (0..<rows).map { x[$0 * columns + column] } }
    }

    /// a [m, k] times b [k, n].
    private static func product(_ a: [Double], _ b: [Double], _ m: Int, _ k: Int, _ n: Int) -> [Double] {
        var c = [Double](repeating: 0, count: m * n)
        for i in 0..<m {
            for p in 0..<k {
                for j in 0..<n { c[i * n + j] += a[i * k + p] * b[p * n + j] }
            }
        }
        return c
    }

    private static func length(_ values: [Double]) -> Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }

    /// The moments of Adam, corrected for their start at 0.
    private static func moments(
        _ g: Double, _ state: inout SIMD2<Double>, _ update: Int, _ beta1: Double, _ beta2: Double
    ) -> (mean: Double, square: Double) {
        state[0] = beta1 * state[0] + (1 - beta1) * g
        state[1] = beta2 * state[1] + (1 - beta2) * g * g
        return (state[0] / (1 - pow(beta1, Double(update))), state[1] / (1 - pow(beta2, Double(update))))
    }

    /// The direction of Adam.
    private static func direction(
        _ g: Double, _ state: inout SIMD2<Double>, _ update: Int, _ beta1: Double, _ beta2: Double, _ eps: Double
    ) -> Double {
        let moments = moments(g, &state, update, beta1, beta2)
        return moments.mean / (moments.square.squareRoot() + eps)
    }
}
