-- Counts its runs in `<STATE_DIR>/k.json`, written in place; "mode" in its configuration says how it goes on.
import Control.Concurrent (threadDelay)
import Control.Exception (IOException, evaluate, try)
import Control.Monad (when)
import Data.Char (isDigit)
import Data.List (isInfixOf)
import Data.Time.Clock.POSIX (getPOSIXTime)
import System.Directory (createDirectoryIfMissing)
import System.Environment (getEnv)
import System.Exit (ExitCode (ExitFailure), exitWith)
import System.IO

main :: IO ()
main = do
  config <- getEnv "BOT_CONFIG"
  folder <- getEnv "STATE_DIR"
  bot <- getEnv "BOT_ID"
  let file = folder ++ "/k.json"
  stored <- try (readFile file >>= \text -> evaluate (length text) >> return text) :: IO (Either IOException String)
  let digits = either (const "") (filter isDigit) stored
      count = (if null digits then 0 else read digits) + 1 :: Int
  createDirectoryIfMissing True folder
  writeFile file ("{\"count\":" ++ show count ++ "}")
  now <- getPOSIXTime
  let milliseconds = truncate (now * 1000) :: Integer
  putStrLn ("{\"timestamp\":" ++ show milliseconds ++ ",\"level\":\"info\",\"message\":\"counted " ++ show count ++ "\"}")
  hPutStrLn stderr ("plain words of " ++ bot)
  hFlush stdout
  when ("\"mode\":\"fail\"" `isInfixOf` config) (exitWith (ExitFailure 3))
  when ("\"mode\":\"wait\"" `isInfixOf` config) $ do
    putStrLn "ready"
    hFlush stdout
    threadDelay 60000000
