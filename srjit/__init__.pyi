"""The public names of srjit: type checkers read them here, and so does ``__init__.py``."""

from srjit import optim as optim
from srjit import passes as passes
from srjit import recipes as recipes
from srjit import targets as targets
from srjit.api.calibrate import calibrate as calibrate
from srjit.api.export import Exported as Exported
from srjit.api.export import export as export
from srjit.api.export import load as load
from srjit.api.freeze import freeze as freeze
from srjit.api.function import SrjitFunction as SrjitFunction
from srjit.api.function import replay as replay
from srjit.api.function import srjit as srjit
from srjit.api.recommend import Recommendation as Recommendation
from srjit.api.recommend import recommend as recommend
from srjit.api.scopes import keep_high_precision as keep_high_precision
from srjit.api.scopes import role as role
from srjit.api.transformation import UnsupportedSiteError as UnsupportedSiteError
from srjit.api.transformation import transform as transform
from srjit.calling.stages import Compiled as Compiled
from srjit.calling.stages import Lowered as Lowered
from srjit.calling.stages import Traced as Traced
from srjit.diagnostics.verify.certificate import Certificate as Certificate
from srjit.diagnostics.verify.certificate import OperandCertificate as OperandCertificate
from srjit.diagnostics.verify.function import verify_function as verify_function
from srjit.diagnostics.watch.diagnosis import Diagnosis as Diagnosis
from srjit.diagnostics.watch.sinks import TensorBoard as TensorBoard
from srjit.modules.rejit import Rejitted as Rejitted
from srjit.modules.rejit import rejit as rejit
from srjit.numerics.arrays import QuantizedArray as QuantizedArray
from srjit.numerics.arrays import dequantize as dequantize
from srjit.numerics.encode import quantize as quantize
from srjit.numerics.encode import stochastic_round as stochastic_round
from srjit.numerics.quantization import Quantization as Quantization
from srjit.numerics.shards import shared_noise as shared_noise
from srjit.planning.site import Site as Site
from srjit.planning.site import SitePlan as SitePlan
from srjit.planning.site import WriteBack as WriteBack
from srjit.recipes import Operands as Operands
from srjit.recipes import Recipe as Recipe
from srjit.recipes import RecipeError as RecipeError
from srjit.recipes import Rule as Rule
from srjit.report.report import Report as Report
from srjit.targets import Target as Target

__version__: str
