import GradAccum
import XCTest

/// Groups, frozen parameters and parameters that no micro-batch touches, for every optimizer of the table.
final class ParameterGroupTests: XCTestCase {
    /// What the parameters are after some updates, made with all gradients.
    private func trained(_ shapes: [[Int]], _ optimizer: ([Tensor]) throws -> Optimizer) throws -> [[UInt32]] {
        let parameters = try randomParameters(shapes)
        let accumulator = try Accumulator(try optimizer(parameters))
        for update in 1...4 {
            try add(randomGradients(shapes, update: update), to: accumulator, weight: 1)
            _ = try accumulator.step()
        }
        return try bits(of: parameters)
    }

    func testAGroupHasARateAndADecayOfItsOwn() throws {
        for row in OptimizerCase.all {
            var other = row.rule
            other.learningRate *= 0.5
            other.setWeightDecay(0.25)
            let inNone = try trained(row.shapes, row.make)
            let inGroup = try trained(row.shapes) { try Optimizer($0, other) }
            let mixed = try trained(row.shapes) { parameters in
                let optimizer = try row.make(parameters)
                let members = parameters.indices.filter { $0 % 2 == 1 }.map { parameters[$0] }
                let group = ParameterGroup(learningRateScale: 0.5, weightDecay: 0.25)
                XCTAssertEqual(try optimizer.addGroup(members, group), 0)
                XCTAssertEqual(try optimizer.group(0), group)
                return optimizer
            }
            for index in row.shapes.indices {
                XCTAssertEqual(mixed[index], index % 2 == 1 ? inGroup[index] : inNone[index], "\(row.name) \(index)")
                XCTAssertNotEqual(inGroup[index], inNone[index], "\(row.name) \(index)")
            }
        }
    }

    func testOneRateDrivesAllGroupsAndAGroupCanBeChanged() throws {
        let (p, q) = (try Tensor([0], shape: [1]), try Tensor([0], shape: [1]))
        let optimizer = try Optimizer([p, q], SGD(learningRate: 1))
        let accumulator = try Accumulator(optimizer)
        let group = try optimizer.addGroup([q], ParameterGroup(learningRateScale: 0.25))
        func step() throws -> [Float] {
            try add([[1], [1]], to: accumulator, weight: 1)
            _ = try accumulator.step()
            return [try p.values()[0], try q.values()[0]]
        }
        XCTAssertEqual(try step(), [-1, -0.25])
        try optimizer.setLearningRate(2)
        XCTAssertEqual(try step(), [-3, -0.75])
        try optimizer.setGroup(group, ParameterGroup(learningRateScale: 0))
        XCTAssertEqual(try step(), [-5, -0.75])
        XCTAssertEqual(optimizer.groupCount, 1)
    }

    /// The group is clipped by its own norm, and the rest as if the group were not there.
    func testAGroupIsClippedApart() throws {
        let shapes = [[3], [2]]
        let parameters = try randomParameters(shapes)
        let start = try parameters.map { try $0.values() }
        let optimizer = try Optimizer(parameters, SGD(learningRate: 1))
        try optimizer.addGroup([parameters[1]], ParameterGroup(maxGradNorm: 0.5))
        let accumulator = try Accumulator(optimizer, .init(maxGradNorm: 10))
        try add([[6, 0, 0], [0, 80]], to: accumulator, weight: 2)
        let report = try accumulator.step()
        XCTAssertEqual(report.gradientNorm, (9.0 + 1600).squareRoot(), accuracy: 1e-12)
        XCTAssertEqual(report.clipFactor, (9.25 / 1609).squareRoot(), accuracy: 1e-6)
        XCTAssertEqual(try parameters[0].values()[0], start[0][0] - 3, "below the limit of the rest")
        XCTAssertEqual(try parameters[1].values()[1], start[1][1] - 0.5, accuracy: 1e-5)

        // And the other way round.
        try optimizer.setGroup(0, ParameterGroup(maxGradNorm: 1000))
        try add([[0, 100, 0], [3, 4]], to: accumulator, weight: 1)
        XCTAssertEqual(try accumulator.step().clipFactor, (125.0 / 10025).squareRoot(), accuracy: 1e-6)
        XCTAssertEqual(try parameters[1].values()[0], start[1][0] - 3)

        try add([[0, 1, 0], [3, 4]], to: accumulator, weight: 1)
        XCTAssertEqual(try accumulator.step().clipFactor, 1)
        try add([[0, 1, 0], [3, .infinity]], to: accumulator, weight: 1)
        let before = try bits(of: parameters)
        XCTAssertEqual(try accumulator.step().outcome, .skippedNonFinite)
        XCTAssertEqual(try bits(of: parameters), before)
    }

    /// Per update, whether the first parameter gets a gradient.
    private static let touches = [true, true, false, false, true, true]

    /// The first parameter after each update, where it alone gets gradients, in the updates that touch it.
    private func alone(_ row: OptimizerCase) throws -> [[UInt32]] {
        let parameters = try randomParameters(row.shapes)
        let accumulator = try Accumulator(try row.make(parameters))
        return try Self.touches.indices.map { update in
            if Self.touches[update] {
                var values: [[Float]?] = randomGradients(row.shapes, update: update)
                for index in 1..<values.count { values[index] = nil }
                try add(values, to: accumulator, weight: 1)
                _ = try accumulator.step()
            }
            return try bits(of: [parameters[0]])[0]
        }
    }

    func testAParameterThatNothingTouchesKeepsItsValueAndItsState() throws {
        for row in OptimizerCase.all {
            let expected = try alone(row)
            let parameters = try randomParameters(row.shapes)
            let accumulator = try Accumulator(try row.make(parameters))
            for update in Self.touches.indices {
                var values: [[Float]?] = randomGradients(row.shapes, update: update)
                if !Self.touches[update] { values[0] = nil }
                try add(values, to: accumulator, weight: 1)
                XCTAssertEqual(try accumulator.step().updateCount, update + 1)
                XCTAssertEqual(try bits(of: [parameters[0]])[0], expected[update], "\(row.name) update \(update)")
            }
        }
    }

    func testAFrozenParameterKeepsItsValueAndItsState() throws {
        for row in OptimizerCase.all {
            let expected = try alone(row)
            let parameters = try randomParameters(row.shapes)
            let accumulator = try Accumulator(try row.make(parameters))
            for update in Self.touches.indices {
                try parameters[0].setRequiresGrad(Self.touches[update])
                try add(randomGradients(row.shapes, update: update), to: accumulator, weight: 1)
                _ = try accumulator.step()
                XCTAssertEqual(try bits(of: [parameters[0]])[0], expected[update], "\(row.name) update \(update)")
            }
        }
    }

    func testAFrozenParameterHasNoPartInTheNormNorInWhetherItIsFinite() throws {
        let (p, q) = (try Tensor([1], shape: [1]), try Tensor([2], shape: [1]))
        let optimizer = try Optimizer([p, q], AdamW())
        let accumulator = try Accumulator(optimizer)
        try q.setRequiresGrad(false)
        try add([[3], [.nan]], to: accumulator, weight: 1)
        let report = try accumulator.step()
        XCTAssertEqual(report.outcome, .applied)
        XCTAssertEqual(report.gradientNorm, 3)
        XCTAssertEqual(try q.values(), [2])
        XCTAssert(optimizer.parameters[1] === q, "it stays a parameter of its optimizer")
    }

    func testNoGradientFlowsToAFrozenParameter() throws {
        let (p, q) = (try Tensor([2], shape: [1]), try Tensor([3], shape: [1]))
        let accumulator = try Accumulator(try Optimizer([p, q], SGD(learningRate: 1)))
        try q.setRequiresGrad(false)
        try accumulator.accumulate(try (p * q).sum(), weight: 1)
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), [3])
        XCTAssertEqual(try accumulator.accumulatedGradient(1).values(), [0])
        // Frozen after the gradient flowed: it is left out of the step, and no loss on its own.
        try q.setRequiresGrad(true)
        try accumulator.accumulate(try (p * q).sum(), weight: 1)
        try q.setRequiresGrad(false)
        XCTAssertEqual(try accumulator.step().gradientNorm, 3)
        XCTAssertEqual(try q.values(), [3])
        XCTAssertEqual(try p.values(), [-1])
        try q.setRequiresGrad(true)
        try accumulator.accumulate(try (p * q).sum(), weight: 1)
        XCTAssertEqual(try accumulator.accumulatedGradient(1).values(), [-1], "nothing of before is left")
    }

    func testOptimizersSideBySideShareNothing() throws {
        let (p, q) = (try Tensor([2], shape: [1]), try Tensor([3], shape: [1]))
        let first = try Accumulator(try Optimizer([p], SGD(learningRate: 1)))
        let second = try Accumulator(try Optimizer([q], SGD(learningRate: 1)))
        try first.accumulate(try (p * p).sum(), weight: 1)
        try second.accumulate(try (q * q).sum(), weight: 1)
        _ = try first.step()
        XCTAssertEqual(try [p.values(), q.values()], [[-2], [3]])
        XCTAssertEqual(try second.accumulatedGradient(0).values(), [6])
        _ = try second.step()
        XCTAssertEqual(try [p.values(), q.values()], [[-2], [-3]])
        assertThrows(.invalidArgument, naming: "another optimizer") {
            try first.accumulate(try (p * q).sum(), weight: 1)
        }
        assertThrows(.state, naming: "parameters[1]") { _ = try Optimizer([try Tensor.zeros([1]), q], SGD()) }
    }

    func testBadGroupsAreRefused() throws {
        let parameters = try randomParameters([[2], [3]])
        let foreign = try Tensor.zeros([1])
        let optimizer = try Optimizer(parameters, AdamW(learningRate: 1e30))
        assertThrows(.invalidArgument, naming: "parameters is empty") { try optimizer.addGroup([], .init()) }
        assertThrows(.invalidArgument, naming: "parameters[1]") {
            try optimizer.addGroup([parameters[0], foreign], .init())
        }
        assertThrows(.invalidArgument, naming: "learning_rate_scale") {
            try optimizer.addGroup([parameters[0]], .init(learningRateScale: 1e10))
        }
        assertThrows(.invalidArgument, naming: "weight_decay") {
            try optimizer.addGroup([parameters[0]], .init(weightDecay: -1))
        }
        assertThrows(.index, naming: "no groups") { _ = try optimizer.group(0) }
        try optimizer.addGroup([parameters[0]], .init(learningRateScale: 1e8))
        assertThrows(.state, naming: "group 0") { try optimizer.addGroup(parameters, .init()) }
        assertThrows(.invalidArgument, naming: "learning_rate_scale") { try optimizer.setLearningRate(1e31) }
        XCTAssertEqual(optimizer.learningRate, 1e30)
        assertThrows(.index, naming: "group is 1") { try optimizer.setGroup(1, .init()) }
    }
}
