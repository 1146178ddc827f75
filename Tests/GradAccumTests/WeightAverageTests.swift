import GradAccum
import XCTest

final class WeightAverageTests: XCTestCase {
    private let sizes = [3, 70_000]

    private func training() throws -> (Optimizer, Accumulator) {
        let parameters = try sizes.enumerated().map { index, size in
            let tensor = try Tensor.zeros([size])
            try tensor.fillUniform(low: -1, high: 1, seed: UInt64(index))
            return tensor
        }
        let optimizer = try Optimizer(parameters, SGD(learningRate: 0.5, momentum: 0.5))
        return (optimizer, try Accumulator(optimizer))
    }

    @discardableResult
    private func window(
        _ accumulator: Accumulator, _ seed: Int, weight: Double = 1, poison: Float = 0
    ) throws -> WindowReport {
        var generator = SplitMix64(UInt64(seed))
        var sums = sizes.map { size in (0..<size).map { _ in Float.random(in: -1...1, using: &generator) } }
        sums[1][5] += poison
        try sums[0].withUnsafeBytes { first in
            try sums[1].withUnsafeBytes { second in
                try accumulator.accumulate(
                    gradients: [first.baseAddress!, second.baseAddress!], loss: 0, weight: weight)
            }
        }
        return try accumulator.step()
    }

    private func bits(_ tensors: [Tensor]) throws -> [[UInt32]] {
        try tensors.map { try $0.values().map(\.bitPattern) }
    }
    private func bits(_ average: WeightAverage) throws -> [[UInt32]] {
        try bits(sizes.indices.map { try average.weights($0) })
    }

    /// Against the formula in double, where what is kept of update `t` of a window is `keep(t, weight)`.
    private func check(
        _ decay: WeightAverage.Decay, isWarmedUp: Bool = false, keep: (Double, Double) -> Double
    ) throws {
        let (optimizer, accumulator) = try training()
        let average = try WeightAverage(optimizer, decay, isWarmedUp: isWarmedUp)
        var expected = try optimizer.parameters.map { try $0.values().map(Double.init) }
        for update in 1...20 {
            let weight = Double(1 + update % 3)
            try window(accumulator, update, weight: weight)
            let keep = keep(Double(update), weight)
            for (index, parameter) in optimizer.parameters.enumerated() {
                for (element, value) in try parameter.values().enumerated() {
                    expected[index][element] = keep * expected[index][element] + (1 - keep) * Double(value)
                }
            }
        }
        XCTAssertEqual(average.updateCount, 20)
        for index in sizes.indices {
            for (found, value) in zip(try average.weights(index).values(), expected[index]) {
                XCTAssertEqual(Double(found), value, accuracy: 20 * 0x1p-22, "\(decay)")
            }
        }
    }

    func testAveragesAreThoseOfTheFormula() throws {
        try check(.perUpdate(0.9)) { _, _ in 0.9 }
        try check(.perUpdate(0)) { _, _ in 0 }
        try check(.perUpdate(0.999), isWarmedUp: true) { t, _ in (1 + t) / (10 + t) }
        try check(.perUpdate(0.5), isWarmedUp: true) { t, _ in min(0.5, (1 + t) / (10 + t)) }
        try check(.halfLife(3, .updates)) { _, _ in pow(0.5, 1 / 3.0) }
        try check(.halfLife(8, .weight)) { _, weight in pow(0.5, weight / 8) }
    }

    func testOnlyAppliedUpdatesMoveAnAverage() throws {
        let (plain, a) = try training()
        let (disturbed, b) = try training()
        let averages = try [plain, disturbed].map { try WeightAverage($0, .halfLife(4, .weight), isWarmedUp: true) }
        for update in 0..<6 {
            XCTAssertEqual(try window(b, 99, poison: .nan).outcome, .skippedNonFinite)
            XCTAssertEqual(try window(b, 98, weight: 0).outcome, .skippedZeroWeight)
            for accumulator in [a, b] { try window(accumulator, update, weight: 3) }
        }
        XCTAssertEqual(averages[1].updateCount, 6)
        XCTAssertEqual(try bits(averages[0]), try bits(averages[1]))
    }

    func testThreadsChangeNoBit() throws {
        let results = try [1, 2, 5].map { threads in
            try withThreads(threads) {
                let (optimizer, accumulator) = try training()
                let average = try WeightAverage(optimizer, .perUpdate(0.7))
                for update in 0..<3 { try window(accumulator, update) }
                return try bits(average)
            }
        }
        XCTAssertEqual(results[0], results[1])
        XCTAssertEqual(results[0], results[2])
    }

    func testSwappingExchangesTheWeightsAndBringsThemBackToTheBit() throws {
        let (optimizer, accumulator) = try training()
        let average = try WeightAverage(optimizer, .perUpdate(0.9))
        for update in 0..<3 { try window(accumulator, update) }
        let (weights, averages) = (try bits(optimizer.parameters), try bits(average))
        try average.swapIn()
        XCTAssertTrue(average.isSwappedIn)
        XCTAssertEqual(try bits(optimizer.parameters), averages)
        XCTAssertEqual(try bits(average), averages)
        try average.swapOut()
        XCTAssertEqual(try bits(optimizer.parameters), weights)
        XCTAssertEqual(try bits(average), averages)
    }

    func testWrongOrdersAreErrorsThatNameTheFix() throws {
        let (optimizer, accumulator) = try training()
        let average = try WeightAverage(optimizer)
        let other = try WeightAverage(optimizer, .perUpdate(0.5))
        try window(accumulator, 0)
        assertThrows(.state, naming: "swap_in") { try average.swapOut() }
        try average.swapIn()
        for call in [average.swapIn, other.swapIn, average.reset, other.reset] {
            assertThrows(.state, naming: "swap_out") { try call() }
        }
        assertThrows(.state, naming: "swap_in") { try other.swapOut() }
        assertThrows(.state, naming: "swap_out") { _ = try WeightAverage(optimizer) }
        assertThrows(.state, naming: "swap_out") { try window(accumulator, 1) }
        assertThrows(.state, naming: "swap_out") {
            try accumulator.accumulate(try optimizer.parameters[0].sum(), weight: 1)
        }
        try average.swapOut()
        XCTAssertEqual(try window(accumulator, 1).updateCount, 2)
        assertThrows(.index, naming: "index is 2") { _ = try average.weights(2) }
        assertThrows(.invalidArgument, naming: "decay is 1") { _ = try WeightAverage(optimizer, .perUpdate(1)) }
        assertThrows(.invalidArgument, naming: "half_life is 0") {
            _ = try WeightAverage(optimizer, .halfLife(0, .updates))
        }
    }

    func testAStepIsRefusedWhileAWindowWaitsAndTheWeightsAreAverages() throws {
        let (optimizer, accumulator) = try training()
        let average = try WeightAverage(optimizer, .perUpdate(0.5))
        try window(accumulator, 0)
        let loss = try (optimizer.parameters[0] * optimizer.parameters[0]).sum()
        try accumulator.accumulate(try optimizer.parameters[0].sum(), weight: 2)
        try average.swapIn()
        assertThrows(.state, naming: "swap_out") { _ = try accumulator.step() }
        try average.swapOut()
        assertThrows(.state, naming: "loss") { try accumulator.accumulate(loss, weight: 1) }
        XCTAssertEqual(try accumulator.step().weight, 2)
    }

    func testAnAverageThatGoesAwayBringsTheWeightsBack() throws {
        let (optimizer, accumulator) = try training()
        try window(accumulator, 0)
        let weights = try bits(optimizer.parameters)
        do {
            let average = try WeightAverage(optimizer, .perUpdate(0.5))
            try window(accumulator, 1)
            let moved = try bits(optimizer.parameters)
            try average.swapIn()
            XCTAssertNotEqual(try bits(optimizer.parameters), moved)
            XCTAssertNotEqual(moved, weights)
        }
        XCTAssertEqual(try window(accumulator, 2).updateCount, 3)
    }

    func testAResetStartsFromTheWeights() throws {
        let (optimizer, accumulator) = try training()
        let average = try WeightAverage(optimizer)
        for update in 0..<3 { try window(accumulator, update) }
        try average.reset()
        XCTAssertEqual(average.updateCount, 0)
        XCTAssertEqual(try bits(average), try bits(optimizer.parameters))
    }
}
