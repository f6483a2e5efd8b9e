-- Counts its runs in `<STATE_DIR>/k.json`; "mode" in its configuration says how it goes on. Answers queries where it is the query
-- entrypoint.
import Control.Concurrent (threadDelay)
import Control.Monad (when)
import Data.Char (isDigit)
import Data.List (isInfixOf)
import Data.Maybe (fromMaybe)
import System.Environment (getEnv, lookupEnv)
import System.Exit (ExitCode (ExitFailure), exitWith)
import System.IO
import The0

counted :: IO Int
counted = do
  digits <- filter isDigit . fromMaybe "" <$> getState "k"
  return (if null digits then 0 else read digits)

answer :: String -> String -> IO String
answer "/status" params = do
  count <- counted
  return ("{\"count\":" ++ show count ++ ",\"params\":" ++ params ++ ",\"note\":\"grün €\"}")
answer "/write" _ = setState "k" "{\"count\":99}" >> return "null"
answer "/boom" _ = ioError (userError "boom")
answer path _ = ioError (userError ("No handler for path: " ++ path))

main :: IO ()
main = do
  kind <- lookupEnv "ENTRYPOINT_TYPE"
  if kind == Just "query" then run answer else bot

bot :: IO ()
bot = do
  config <- getEnv "BOT_CONFIG"
  name <- getEnv "BOT_ID"
  count <- (+ 1) <$> counted
  setState "k" ("{\"count\":" ++ show count ++ "}")
  logLine ("counted " ++ show count)
  metric "count" (fromIntegral count)
  hPutStrLn stderr ("plain words of " ++ name)
  when ("\"mode\":\"fail\"" `isInfixOf` config) (exitWith (ExitFailure 3))
  when ("\"mode\":\"wait\"" `isInfixOf` config) $ do
    putStrLn "ready"
    hFlush stdout
    threadDelay 60000000
